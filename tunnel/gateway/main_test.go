package gateway

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// TestMain makes this program a server on standard streams when a test starts it as one.
func TestMain(m *testing.M) {
	if how := os.Getenv("GATEWAY_TEST_SERVER"); how != "" {
		fmt.Fprintln(os.Stderr, "server starts:", how)
		if how == "crash" {
			os.Exit(3)
		}
		if err := testServer(how != "new").Run(context.Background(), &mcp.StdioTransport{}); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type text struct {
	Text string `json:"text"`
}

// testServer is an MCP server of the official SDK's; an old one knows only the revisions
// of the protocol that have sessions.
func testServer(old bool) *mcp.Server {
	o := new(mcp.ServerOptions)
	if old {
		o.SupportedProtocolVersions = []string{"2025-11-25", "2025-06-18"}
	}
	s := mcp.NewServer(&mcp.Implementation{Name: "test", Version: "1"}, o)
	mcp.AddTool(s, &mcp.Tool{Name: "echo", Description: "says what it is told"}, func(_ context.Context, _ *mcp.CallToolRequest, in text) (*mcp.CallToolResult, any, error) {
		return say(in.Text), nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "secret", Description: "is not for everybody"}, func(context.Context, *mcp.CallToolRequest, text) (*mcp.CallToolResult, any, error) {
		return say("the secret"), nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "steps", Description: "tells how it goes"}, func(ctx context.Context, r *mcp.CallToolRequest, in text) (*mcp.CallToolResult, any, error) {
		for i := range 3 {
			err := r.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: r.Params.GetProgressToken(), Progress: float64(i + 1), Total: 3})
			if err != nil {
				return nil, nil, err
			}
		}
		return say("done"), nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "ask", Description: "asks back"}, func(ctx context.Context, r *mcp.CallToolRequest, in text) (*mcp.CallToolResult, any, error) {
		answer, err := r.Session.Elicit(ctx, &mcp.ElicitParams{Message: in.Text})
		if err != nil {
			return nil, nil, err
		}
		return say("you said " + answer.Action), nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "env", Description: "shows its environment"}, func(context.Context, *mcp.CallToolRequest, text) (*mcp.CallToolResult, any, error) {
		return say(strings.Join(os.Environ(), "\n")), nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "die", Description: "ends the server"}, func(context.Context, *mcp.CallToolRequest, text) (*mcp.CallToolResult, any, error) {
		os.Exit(7)
		return nil, nil, nil
	})
	return s
}

func say(s string) *mcp.CallToolResult {
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: s}}}
}
