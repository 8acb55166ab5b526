package e2e

import "github.com/bailey-platform/bailey/model/scripted"

// What the scripted model plays. A conversation picks its script by a word of its
// first message.

// greet is a whole session that uses the tools every worker has. Each turn checks
// what the worker answered, so a session that ends with end_turn has had every
// result right. What it expects is what the official workers answer.
var greet = scripted.Script{
	Name:   "greet",
	Marker: "greet",
	Turns: []scripted.Turn{
		{
			Thinking: "A script with a loop will do.",
			Text:     "I will write the script first.",
			Calls: []scripted.Call{{Name: "write", Input: map[string]any{
				"file_path": "greet/hello.sh", "content": "for name in \"$@\"; do\n\techo \"hallo $name\"\ndone\n",
			}}},
		},
		{
			Expect: []scripted.Expect{{OK: true, Contains: "wrote"}},
			Text:   "Two calls at once.",
			Calls: []scripted.Call{
				{Name: "bash", Input: map[string]any{"command": "cd greet && export WHO=world && bash hello.sh $WHO"}},
				{Name: "read", Input: map[string]any{"file_path": "greet/hello.sh", "view_range": []int{2, 2}}},
			},
		},
		{
			Expect: []scripted.Expect{
				{Result: 0, OK: true, Contains: "hallo world"},
				{Result: 1, OK: true, Contains: `echo "hallo $name"`, Lacks: "done"},
			},
			Calls: []scripted.Call{{Name: "edit", Input: map[string]any{
				"file_path": "greet/hello.sh", "old_string": "hallo", "new_string": "hello",
			}}},
		},
		{
			Expect: []scripted.Expect{{OK: true, Contains: "1 replacement"}},
			Calls: []scripted.Call{
				// The shell is the same as before: it knows WHO and where it is.
				{Name: "bash", Input: map[string]any{"command": "bash hello.sh $WHO && (exit 3)"}},
				{Name: "grep", Input: map[string]any{"pattern": "hell[o]", "path": "greet"}},
				{Name: "read", Input: map[string]any{"file_path": "no-such-file"}},
				{Name: "bash", Input: map[string]any{"command": "true"}},
			},
		},
		{
			Expect: []scripted.Expect{
				{Result: 0, Failed: true, Contains: "hello world"},
				{Result: 1, OK: true, Contains: "hello.sh:2:"},
				{Result: 2, Failed: true, Contains: "no-such-file"},
				{Result: 3, OK: true, Contains: "(no output)"},
			},
			Text: "Done: hello.sh greets everybody.",
		},
	},
}

// greetCalls is how many tools greet calls.
const greetCalls = 8

// talk is a conversation without tools.
var talk = scripted.Script{
	Name:   "talk",
	Marker: "talk",
	Turns: []scripted.Turn{
		{
			Thinking: "Something friendly.",
			Text:     "This is the first answer, and it is long enough to come in many pieces: one, two, three, four, five.",
			Usage:    &scripted.Usage{InputTokens: 1000, OutputTokens: 200, CacheReadInputTokens: 30, CacheCreation5m: 4},
		},
		{
			Expect: []scripted.Expect{{User: "again"}},
			Text:   "This is the second answer.",
			Usage:  &scripted.Usage{InputTokens: 2000, OutputTokens: 100},
		},
	},
	OpenEnd: true,
}
