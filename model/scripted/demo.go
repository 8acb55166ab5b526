package scripted

// DemoPrompt is the first user message that [Demo] answers.
const DemoPrompt = "Write a shell script that adds up the numbers from 1 to N. Show me that it works for 10 and for 100."

// DemoOrderPrompt, later in the same conversation, has [Demo] ask an MCP server by the
// name of orders about DemoOrder.
const (
	DemoOrderPrompt = "Where is order " + DemoOrder + "?"
	DemoOrder       = "PO-58213-QUINCE"
)

// demoProgram is off by one.
const demoProgram = `#!/bin/bash
# Adds up the numbers from 1 to N, and checks the sum against Gauss's formula.
n=${1:-10}
sum=0
for ((i = 1; i < n; i++)); do
	sum=$((sum + i))
done
want=$((n * (n + 1) / 2))
echo "1 to $n: the sum is $sum, should be $want"
[ "$sum" -eq "$want" ]
`

// Demo is the transcript of the demo: the agent writes a small program, runs
// it, sees that it is wrong, reads it, fixes it, runs it again and answers. It
// needs the tools bash, read, write and edit, and a box with nothing but bash.
// Each turn checks what the tools said before, so that a wrong tool result ends
// the demo. The conversation may go on with [DemoOrderPrompt] and the offline answers.
func Demo() Script {
	return Script{
		Name:    "demo",
		Marker:  DemoPrompt,
		OpenEnd: true,
		Turns: []Turn{
			{
				Thinking: "A loop will do. Gauss's formula gives the right answer to compare with.",
				Text:     "I'll write the script so that it checks itself against n·(n+1)/2.",
				Calls:    []Call{{Name: "write", Input: map[string]any{"file_path": "sum.sh", "content": demoProgram}}},
			},
			{
				Expect: []Expect{{OK: true, Contains: "sum.sh"}},
				Text:   "Now let me run it.",
				Calls:  []Call{{Name: "bash", Input: map[string]any{"command": "bash sum.sh 10"}}},
			},
			{
				Expect:   []Expect{{Failed: true, Contains: "1 to 10: the sum is 45, should be 55"}},
				Thinking: "45 is short by exactly 10, the last number. The loop ends too early.",
				Text:     "It says 45 where 55 is right. Let me look at the loop.",
				Calls:    []Call{{Name: "read", Input: map[string]any{"file_path": "sum.sh"}}},
			},
			{
				Expect: []Expect{{OK: true, Contains: "for ((i = 1; i < n; i++)); do"}},
				Text:   "The loop stops before n: `<` should be `<=`.",
				Calls: []Call{{Name: "edit", Input: map[string]any{
					"file_path": "sum.sh", "old_string": "i < n;", "new_string": "i <= n;",
				}}},
			},
			{
				Expect: []Expect{{OK: true, Contains: "sum.sh"}},
				Text:   "Fixed. Once more, for both numbers.",
				Calls:  []Call{{Name: "bash", Input: map[string]any{"command": "bash sum.sh 10 && bash sum.sh 100"}}},
			},
			{
				Expect: []Expect{
					{OK: true, Contains: "1 to 10: the sum is 55, should be 55"},
					{OK: true, Contains: "1 to 100: the sum is 5050, should be 5050"},
				},
				Text: "Done: `sum.sh` adds up the numbers from 1 to N. It gives 55 for 10 and 5050 for 100, " +
					"as Gauss's formula does. My first version stopped one number short; running it showed that.",
			},
			{
				On:     DemoOrderPrompt,
				Expect: []Expect{{Tool: "mcp__orders__lookup_order"}},
				Text:   "The order desk knows.",
				Calls:  []Call{{Name: "mcp__orders__lookup_order", Input: map[string]any{"order": DemoOrder}}},
			},
		},
	}
}
