package loop

import (
	"path"
	"strings"
)

// A shellCommand is one simple command of a script, as far as its parts can be
// told without running it.
type shellCommand struct {
	words  []string // unquoted; expansions are left as they are written
	writes []string // the files that its output is redirected to
	input  string   // its here-document
	piped  bool     // it reads the output of the command before it
	inner  []shellCommand
}

// The bounds of parseShell. What lies beyond is not looked at, and the script is
// then not plain.
const (
	shellBytesMax = 64 << 10
	shellDepthMax = 4
)

// parseShell splits a script into its simple commands, also those inside of
// substitutions and groups. plain reports that this is all there is to the
// script: commands with literal words, joined by && || ; | and line ends.
//
// It never fails. Where it does not understand, it may take data for commands,
// and says that the script is not plain.
func parseShell(src string, depth int) (script []shellCommand, plain bool) {
	p := shellParser{src: src, depth: depth, plain: true}
	if len(src) > shellBytesMax {
		p.src, p.plain = src[:shellBytesMax], false
	}
	if depth > shellDepthMax {
		return nil, false
	}
	p.run()
	return p.script, p.plain
}

type shellParser struct {
	src   string
	at    int
	depth int
	plain bool

	script []shellCommand
	cmd    shellCommand
	word   strings.Builder
	inWord bool
	quoted bool // part of the word was quoted
	target bool // the word is the target of a redirection
	heres  []string
}

func (p *shellParser) run() {
	for p.at < len(p.src) {
		c := p.src[p.at]
		p.at++
		switch c {
		case ' ', '\t':
			p.endWord()
		case '\r': // the end of a line to a terminal, and the shell has one
			p.endCommand(false)
			p.plain = false
		case '\n':
			p.endCommand(false)
			p.hereDocuments()
		case ';', ')':
			p.endCommand(false)
			p.plain = p.plain && c == ';'
		case '(':
			p.endCommand(false)
			p.plain = false
		case '|':
			p.endCommand(!p.accept('|'))
			if p.accept('&') {
				p.plain = false
			}
		case '&':
			switch {
			case p.accept('&'):
				p.endCommand(false)
			case p.accept('>'):
				p.redirect()
			default:
				p.endCommand(false)
				p.plain = false // in the background
			}
		case '>':
			p.redirect()
		case '<':
			p.plain = false
			p.inputFrom()
		case '#':
			if p.inWord {
				p.add(c)
				continue
			}
			if n := strings.IndexByte(p.src[p.at:], '\n'); n >= 0 {
				p.at += n
			} else {
				p.at = len(p.src)
			}
		case '\\':
			if p.at < len(p.src) {
				if p.src[p.at] != '\n' {
					p.add(p.src[p.at])
					p.quoted = true
				}
				p.at++
			}
		case '\'':
			p.inWord, p.quoted = true, true
			p.word.WriteString(p.until('\''))
		case '"':
			p.inWord, p.quoted = true, true
			p.doubleQuoted()
		case '$', '`':
			p.expansion(c)
		case '{', '}':
			p.plain = false
			p.add(c)
		default:
			p.add(c)
		}
	}
	p.endCommand(false)
}

func (p *shellParser) add(c byte) {
	p.inWord = true
	p.word.WriteByte(c)
}

func (p *shellParser) accept(c byte) bool {
	if p.at < len(p.src) && p.src[p.at] == c {
		p.at++
		return true
	}
	return false
}

// until returns the text up to the next c and moves behind it.
func (p *shellParser) until(c byte) string {
	n := strings.IndexByte(p.src[p.at:], c)
	if n < 0 {
		p.plain = false
		n = len(p.src) - p.at
	}
	text := p.src[p.at : p.at+n]
	p.at = min(p.at+n+1, len(p.src))
	return text
}

func (p *shellParser) doubleQuoted() {
	for p.at < len(p.src) {
		c := p.src[p.at]
		p.at++
		switch c {
		case '"':
			return
		case '\\':
			if p.at < len(p.src) {
				p.add(p.src[p.at])
				p.at++
			}
		case '$', '`':
			p.expansion(c)
		default:
			p.add(c)
		}
	}
	p.plain = false // never closed
}

// expansion reads $… or `…`. The commands in it are kept; of the rest only the
// spelling is known.
func (p *shellParser) expansion(c byte) {
	p.plain = false
	switch {
	case c == '`':
		p.substitution(p.until('`'))
	case p.accept('('):
		p.substitution(p.untilClosed())
	default:
		p.add(c)
	}
}

func (p *shellParser) substitution(src string) {
	p.inWord = true
	inner, _ := parseShell(src, p.depth+1)
	p.cmd.inner = append(p.cmd.inner, inner...)
}

// untilClosed returns the text up to the parenthesis that closes an open one.
func (p *shellParser) untilClosed() string {
	start, open := p.at, 1
	for p.at < len(p.src) {
		c := p.src[p.at]
		p.at++
		switch c {
		case '(':
			open++
		case ')':
			if open--; open == 0 {
				return p.src[start : p.at-1]
			}
		}
	}
	return p.src[start:]
}

// redirect reads what follows a '>'.
func (p *shellParser) redirect() {
	p.dropDescriptor()
	p.accept('>')
	p.accept('|')
	switch {
	case p.accept('('):
		p.substitution(p.untilClosed())
		p.plain = false
	case p.accept('&'):
		for p.at < len(p.src) && (p.src[p.at] >= '0' && p.src[p.at] <= '9' || p.src[p.at] == '-') {
			p.at++
		}
	default:
		p.skipBlanks()
		p.target = true
	}
}

// inputFrom reads what follows a '<'.
func (p *shellParser) inputFrom() {
	p.dropDescriptor()
	switch {
	case p.accept('('):
		p.substitution(p.untilClosed())
	case p.accept('<'):
		if p.accept('<') {
			return // a here-string: the word after it is data
		}
		p.accept('-')
		p.skipBlanks()
		start := p.at
		for p.at < len(p.src) && !strings.ContainsRune(" \t\n;|&<>()", rune(p.src[p.at])) {
			p.at++
		}
		p.heres = append(p.heres, strings.Trim(p.src[start:p.at], `'"\`))
	}
}

// dropDescriptor ends the word before a redirection, unless that is the number of
// the descriptor to redirect.
func (p *shellParser) dropDescriptor() {
	if p.inWord && !p.quoted && strings.Trim(p.word.String(), "0123456789") == "" {
		p.word.Reset()
		p.inWord = false
		return
	}
	p.endWord()
}

func (p *shellParser) skipBlanks() {
	for p.at < len(p.src) && (p.src[p.at] == ' ' || p.src[p.at] == '\t') {
		p.at++
	}
}

// hereDocuments reads the bodies announced by the line before, as the input of
// its last command.
func (p *shellParser) hereDocuments() {
	for _, end := range p.heres {
		var body strings.Builder
		for p.at < len(p.src) {
			line := p.until('\n')
			if strings.TrimLeft(line, "\t") == end {
				break
			}
			body.WriteString(line + "\n")
		}
		if n := len(p.script); n > 0 {
			p.script[n-1].input += body.String()
		}
	}
	p.heres = nil
}

func (p *shellParser) endWord() {
	if p.inWord {
		word := p.word.String()
		switch {
		case p.target:
			p.cmd.writes = append(p.cmd.writes, word)
			p.plain = p.plain && word == "/dev/null"
		default:
			p.cmd.words = append(p.cmd.words, word)
			p.plain = p.plain && (p.quoted || !unsafeGlob(word))
		}
		p.target = false
	}
	p.word.Reset()
	p.inWord, p.quoted = false, false
}

// unsafeGlob reports whether a pattern may match hidden files.
func unsafeGlob(word string) bool {
	clean := path.Clean(word)
	return strings.ContainsAny(word, "*?[") && (strings.HasPrefix(clean, ".") || strings.Contains(clean, "/."))
}

func (p *shellParser) endCommand(pipe bool) {
	p.endWord()
	if p.target { // a redirection to nowhere
		p.target, p.plain = false, false
	}
	if len(p.cmd.words) > 0 || len(p.cmd.writes) > 0 || len(p.cmd.inner) > 0 {
		p.script = append(p.script, p.cmd)
	}
	p.cmd = shellCommand{piped: pipe}
}
