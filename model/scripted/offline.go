package scripted

import "strings"

// offline answers a request no script covers.
func offline(r *request) *Turn {
	if results := r.results(); len(results) > 0 {
		return &Turn{Text: "It said:\n\n" + clip(results[len(results)-1].Content.text(), 2_000)}
	}
	text := strings.TrimSpace(r.last().text())
	if command, ok := cutWord(text, "run"); ok && r.offers("bash") {
		return &Turn{Text: "Running it.", Calls: []Call{{Name: "bash", Input: map[string]any{"command": command}}}}
	}
	if file, ok := cutWord(text, "read"); ok && r.offers("read") {
		return &Turn{Text: "Reading it.", Calls: []Call{{Name: "read", Input: map[string]any{"file_path": file}}}}
	}
	if call, ok := cutWord(text, "call"); ok {
		name, input, _ := strings.Cut(call, " ")
		if r.offers(name) {
			if input = strings.TrimSpace(input); input == "" {
				input = "{}"
			}
			return &Turn{Text: "Calling it.", Calls: []Call{{Name: name, Raw: input}}}
		}
	}
	return &Turn{Text: "This is a scripted stand-in for a model, so it cannot think about that. " +
		"It understands “run COMMAND”, “read FILE” and “call TOOL {INPUT}”; for anything else, configure a real model."}
}

// cutWord splits off a first word, in any case, and what may follow it.
func cutWord(text, word string) (rest string, ok bool) {
	if len(text) <= len(word) || !strings.EqualFold(text[:len(word)], word) || !strings.ContainsRune(" :\n", rune(text[len(word)])) {
		return "", false
	}
	rest = strings.Trim(text[len(word):], " :`\n")
	return rest, rest != ""
}

// clip shortens s to at most n bytes, whole runes.
func clip(s string, n int) string {
	if strings.TrimSpace(s) == "" {
		return "(nothing)"
	}
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
