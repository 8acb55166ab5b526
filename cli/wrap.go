package cli

import (
	"io"
	"strings"
	"unicode/utf8"
)

// A flow writes text that stands beside a margin: lines after the first begin with
// blanks, and on a terminal lines are broken between words before its edge. Text may
// come in pieces; what may be a part of a word is kept until its rest is there.
type flow struct {
	w      io.Writer
	indent int
	width  int // columns; 0 breaks no lines

	col  int    // of what is written of this line, from the margin on
	word string // kept
	gap  string // blanks before it
}

// write adds text, which is safe already.
func (f *flow) write(text string) {
	if f.width == 0 {
		f.out(strings.ReplaceAll(text, "\n", "\n"+strings.Repeat(" ", f.indent)))
		return
	}
	for text != "" {
		i := strings.IndexAny(text, " \n")
		if i < 0 {
			f.word += text
			return
		}
		f.word += text[:i]
		f.flush()
		if text[i] == '\n' {
			f.newline()
		} else {
			f.gap += " "
		}
		text = text[i+1:]
	}
}

// flush writes the word that is kept. One that is longer than a line is left to the
// terminal to break.
func (f *flow) flush() {
	if f.word == "" {
		return
	}
	size := utf8.RuneCountInString(f.word)
	if room := f.width - f.indent; f.col > 0 && f.col+len(f.gap)+size > room {
		f.newline()
	}
	f.out(f.gap + f.word)
	f.col += len(f.gap) + size
	f.gap, f.word = "", ""
}

func (f *flow) newline() {
	f.out("\n" + strings.Repeat(" ", f.indent))
	f.col, f.gap = 0, ""
}

func (f *flow) out(text string) {
	_, _ = io.WriteString(f.w, text) // as all of a timeline
}
