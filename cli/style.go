package cli

import (
	"io"
	"os"
	"strings"
	"unicode"

	"golang.org/x/term"
)

// A style colours text, or leaves it alone where colours do not belong.
type style struct{ on bool }

func (s style) dim(text string) string    { return s.code("2", text) }
func (s style) bold(text string) string   { return s.code("1", text) }
func (s style) red(text string) string    { return s.code("31", text) }
func (s style) green(text string) string  { return s.code("32", text) }
func (s style) yellow(text string) string { return s.code("33", text) }
func (s style) cyan(text string) string   { return s.code("36", text) }

func (s style) code(code, text string) string {
	if !s.on || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// styleOf follows the NO_COLOR convention: colours only on a terminal, and not
// if the variable is set to anything.
func (p *Program) styleOf(w io.Writer) style {
	noColour, _ := p.Env("NO_COLOR")
	dumb, _ := p.Env("TERM")
	return style{on: isTerminal(w) && noColour == "" && dumb != "dumb"}
}

// widthOf returns the columns of the terminal behind w, or 100.
func widthOf(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
			return n
		}
	}
	return 100
}

// clean makes foreign text safe to print: what a model, a tool or another user
// wrote must not be able to move the cursor, rename the window or colour a lie.
// Line feeds stay; tabs become four blanks.
func clean(text string) string {
	text = strings.ReplaceAll(text, "\t", "    ")
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return r
		case unicode.IsControl(r), r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069: // and direction overrides
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// oneLine is clean text on one line of at most width characters.
func oneLine(text string, width int) string {
	text = strings.Join(strings.Fields(clean(text)), " ")
	return clip(text, width)
}

// clip cuts text to width characters, the last of them an ellipsis if something
// was cut.
func clip(text string, width int) string {
	if len(text) <= width {
		return text
	}
	runes := []rune(text)
	if len(runes) <= width {
		return text
	}
	return string(runes[:max(width-1, 0)]) + "…"
}
