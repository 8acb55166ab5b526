package loop

import (
	"path"
	"regexp"
	"slices"
	"strings"
)

// harmless reports whether a plain script does nothing but print what is in the
// session's files. None of these commands writes a file, runs another program or
// opens a connection, whatever its options.
func harmless(script []shellCommand) bool {
	for _, c := range script {
		if len(c.words) == 0 {
			return false
		}
		switch c.words[0] {
		case "ls", "pwd", "cat", "head", "tail", "wc", "grep", "echo", "true", "false":
		default:
			return false
		}
		for _, w := range c.words[1:] {
			if strings.Contains(w, "/") && !inWorkspace(w) || strings.HasPrefix(w, "~") || w == ".." {
				return false
			}
		}
	}
	return len(script) > 0
}

// highRisk reports whether a script holds something that is never meant to run in
// a session: destroying the system, opening it to others, stealing credentials.
func highRisk(script []shellCommand, depth int) bool {
	if depth > shellDepthMax {
		return false
	}
	downloaded := false // something before it in the pipeline came from the network
	for _, c := range script {
		words := unwrap(c.words)
		name := ""
		if len(words) > 0 {
			name = path.Base(words[0])
		}
		downloaded = downloaded && c.piped
		switch {
		case isShell(name) && (downloaded || downloads(c.inner)),
			(name == "eval" || name == "source" || name == ".") && downloads(c.inner),
			riskyCommand(name, words),
			slices.ContainsFunc(c.writes, isSystemFile),
			highRisk(c.inner, depth+1):
			return true
		}
		if nested := scriptArgument(name, words) + "\n" + shellInput(name, c.input); nested != "\n" {
			inner, _ := parseShell(nested, depth+1)
			if highRisk(inner, depth+1) {
				return true
			}
		}
		if name != "echo" && name != "printf" {
			if slices.ContainsFunc(words, holdsSecret) || slices.ContainsFunc(slices.Concat(words, c.writes), isSocket) {
				return true
			}
		}
		downloaded = downloaded || isDownload(name)
	}
	return false
}

// unwrap drops assignments and the commands that only run another one.
func unwrap(words []string) []string {
	wrapped := false
	for len(words) > 0 {
		w := words[0]
		switch {
		case assignmentRE.MatchString(w):
		case slices.Contains(wrappers, path.Base(w)):
			wrapped = true
		case wrapped && strings.HasPrefix(w, "-"):
		default:
			return words
		}
		words = words[1:]
	}
	return nil
}

var (
	assignmentRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)
	wrappers     = []string{
		"sudo", "doas", "env", "nohup", "time", "exec", "command", "builtin", "nice", "ionice", "stdbuf", "setsid", "xargs",
		"if", "then", "else", "elif", "while", "until", "do", "!", "{",
	}
	shells    = []string{"sh", "bash", "zsh", "dash", "ksh", "ash"}
	downloadC = []string{"curl", "wget", "fetch", "aria2c"}
)

func isShell(name string) bool    { return slices.Contains(shells, name) }
func isDownload(name string) bool { return slices.Contains(downloadC, name) }

// downloads reports whether a script fetches something from the network.
func downloads(script []shellCommand) bool {
	return slices.ContainsFunc(script, func(c shellCommand) bool {
		words := unwrap(c.words)
		return len(words) > 0 && isDownload(path.Base(words[0])) || downloads(c.inner)
	})
}

// scriptArgument is the script that a command is given to run, if it is.
func scriptArgument(name string, words []string) string {
	switch {
	case name == "eval":
		return strings.Join(words[1:], " ")
	case isShell(name):
		for i, w := range words {
			if strings.HasPrefix(w, "-") && strings.HasSuffix(w, "c") && i+1 < len(words) {
				return words[i+1]
			}
		}
	}
	return ""
}

func shellInput(name, input string) string {
	if isShell(name) {
		return input
	}
	return ""
}

func riskyCommand(name string, words []string) bool {
	switch name {
	case "":
		return false
	case "shutdown", "reboot", "halt", "poweroff", "telinit", "wipefs", "fdisk", "sfdisk":
		return true
	case "init":
		return slices.Contains(words, "0") || slices.Contains(words, "6")
	case "systemctl":
		return slices.ContainsFunc(words, func(w string) bool { return w == "poweroff" || w == "reboot" || w == "halt" })
	case "rm":
		return hasFlag(words, 'r', "--recursive") && slices.ContainsFunc(words[1:], isSystemRoot) ||
			hasFlag(words, 'R', "--no-preserve-root") && slices.ContainsFunc(words[1:], isSystemRoot)
	case "find":
		return len(words) > 1 && isSystemRoot(words[1]) && (slices.Contains(words, "-delete") || slices.Contains(words, "rm"))
	case "chmod", "chown", "chgrp":
		return (hasFlag(words, 'R', "--recursive") || slices.Contains(words, "777")) && slices.ContainsFunc(words[1:], isSystemRoot)
	case "dd":
		return slices.ContainsFunc(words, func(w string) bool {
			target, ok := strings.CutPrefix(w, "of=")
			return ok && isSystemFile(target)
		})
	case "tee":
		return slices.ContainsFunc(words[1:], isSystemFile)
	case "cp", "mv", "install", "ln":
		return isSystemFile(words[len(words)-1])
	case "nc", "ncat", "netcat":
		return hasFlag(words, 'e', "--exec")
	case "socat":
		return slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(strings.ToLower(w), "exec:") })
	}
	return name == "mkfs" || strings.HasPrefix(name, "mkfs.")
}

// hasFlag looks for a one-letter flag, alone or among others, or its long form.
func hasFlag(words []string, letter byte, long string) bool {
	return slices.ContainsFunc(words, func(w string) bool {
		return w == long || len(w) > 1 && w[0] == '-' && w[1] != '-' && strings.IndexByte(w, letter) > 0
	})
}

var systemRoots = []string{
	"/", "~", "$HOME", "${HOME}", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64",
	"/opt", "/proc", "/root", "/sbin", "/srv", "/sys", "/usr", "/var",
}

// isSystemRoot reports whether a path is a directory whose loss is the loss of
// the system or of a home.
func isSystemRoot(p string) bool {
	p = strings.TrimSuffix(p, "*")
	if strings.HasPrefix(p, "/") {
		p = path.Clean(p)
	} else {
		p = strings.TrimRight(p, "/")
	}
	return slices.Contains(systemRoots, p)
}

// isSystemFile reports whether writing a file changes the system or who may
// enter it.
func isSystemFile(p string) bool {
	clean := path.Clean(p)
	switch clean {
	case "/dev/null", "/dev/stdout", "/dev/stderr", "/dev/tty", "/dev/shm":
		return false
	}
	for _, dir := range []string{"/etc", "/boot", "/dev", "/sys", "/proc", "/var/spool/cron"} {
		if clean == dir || strings.HasPrefix(clean, dir+"/") && !strings.HasPrefix(clean, "/dev/shm/") && !strings.HasPrefix(clean, "/dev/fd/") {
			return true
		}
	}
	return strings.Contains(p, "authorized_keys")
}

// isSocket reports whether a word opens a connection in bash.
func isSocket(w string) bool {
	return strings.Contains(w, "/dev/tcp/") || strings.Contains(w, "/dev/udp/")
}

var forkBombRE = regexp.MustCompile(`([\w:.]+)\s*\(\)\s*\{\s*([\w:.]+)\s*\|\s*([\w:.]+)\s*&\s*;?\s*\}`)

// isForkBomb finds a function that calls itself twice at once.
func isForkBomb(src string) bool {
	for _, m := range forkBombRE.FindAllStringSubmatch(src[:min(len(src), shellBytesMax)], -1) {
		if m[1] == m[2] && m[2] == m[3] {
			return true
		}
	}
	return false
}
