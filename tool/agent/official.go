package agent

import (
	"context"
	"encoding/json"
	"strings"

	anthropic "github.com/anthropics/anthropic-sdk-go/v2"

	"github.com/bailey-platform/bailey/tool"
)

// official runs a tool of the SDK and returns the text it came to. Its error is
// what the model is to read.
func official(ctx context.Context, t anthropic.BetaTool, call tool.Call) (string, error) {
	input := call.Input
	if len(input) == 0 || string(input) == "null" {
		input = json.RawMessage("{}")
	}
	blocks, err := t.Execute(ctx, input)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for _, b := range blocks {
		if b.OfText != nil {
			text.WriteString(b.OfText.Text)
		}
	}
	return text.String(), nil
}

func textResult(text string) tool.Result {
	return tool.Result{Content: []json.RawMessage{tool.Text(text)}}
}
