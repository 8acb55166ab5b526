package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// TestMain makes this program a server on standard streams when a test starts it as one.
func TestMain(m *testing.M) {
	if how := os.Getenv("GATEWAY_TEST_SERVER"); how != "" {
		fmt.Fprintln(os.Stderr, "server starts:", how)
		switch how {
		case "crash":
			os.Exit(3)
		case "orphan":
			orphan()
		case "flood":
			flood()
			os.Exit(0)
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

// orphan starts a program that leaves the server's group and holds its pipes, and says in
// the file ORPHAN which.
func orphan() {
	cmd := exec.Command("sleep", "1000")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(4)
	}
	f, err := os.OpenFile(os.Getenv("ORPHAN"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(f, cmd.Process.Pid)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(4)
	}
}

// flood is a server that says much. Its tool hold never comes to an end; more says as many
// megabytes as it is told, by the token it is told or else by none, and then ends.
func flood() {
	out := bufio.NewWriterSize(os.Stdout, 64<<10)
	filling := strings.Repeat("x", 1<<20)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var m struct {
			ID     json.RawMessage
			Method string
			Params struct {
				Name      string
				RequestID json.RawMessage
				Arguments struct {
					MiB   int
					Token string
				}
			}
		}
		if err := json.Unmarshal(in.Bytes(), &m); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		args := m.Params.Arguments
		switch {
		case m.Method == "notifications/cancelled":
			fmt.Fprintln(os.Stderr, "cancelled", string(m.Params.RequestID))
			// Too late for whoever asked.
			fmt.Fprintf(out, `{"jsonrpc":"2.0","id":%s,"result":{"late":true}}`+"\n", m.Params.RequestID)
		case m.ID == nil || m.Params.Name == "hold":
		default:
			for range args.MiB {
				if args.Token != "" {
					fmt.Fprintf(out, `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%q,"progress":1,"message":"%s"}}`+"\n", args.Token, filling)
				} else {
					fmt.Fprintf(out, `{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"%s"}}`+"\n", filling)
				}
			}
			fmt.Fprintf(out, `{"jsonrpc":"2.0","id":%s,"result":{}}`+"\n", m.ID)
		}
		out.Flush()
	}
}
