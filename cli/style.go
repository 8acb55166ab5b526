package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

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
// wrote must not be able to move the cursor, rename the window, colour a lie or show
// words in another order than they have. Line feeds stay; tabs become four blanks.
func clean(text string) string {
	text = strings.ReplaceAll(text, "\t", "    ")
	return strings.Map(func(r rune) rune {
		if r != '\n' && steers(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// steers reports whether a character does something to a terminal, or to the text
// around it, instead of being shown: controls, also those above ASCII, and invisible
// ones such as direction marks. The two joiners that scripts and emoji need are fine.
func steers(r rune) bool {
	const joiner, nonJoiner = '\u200d', '\u200c'
	switch {
	case r < ' ':
		return true
	case r < unicode.MaxASCII || r == joiner || r == nonJoiner:
		return false
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

// cleanJSON makes JSON safe to print without changing what it says: what [clean]
// replaces is escaped, which can only be within a string.
func cleanJSON(data []byte) []byte {
	if bytes.IndexFunc(data, func(r rune) bool { return r > '~' }) < 0 {
		return data
	}
	out := make([]byte, 0, len(data)+16)
	for _, r := range string(data) {
		switch {
		case r == '\n' || r == '\t' || !steers(r):
			out = utf8.AppendRune(out, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return out
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
