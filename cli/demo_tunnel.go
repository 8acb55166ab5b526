package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model/scripted"
)

// The private server of the demo, as its agent knows it.
const (
	orderServer = "orders"
	orderTool   = "lookup_order"
	orderHeader = "X-Order-Desk"
	orderAnswer = "left Hamburg on waybill 7741-0093"
)

// An orderDesk is a private MCP server: a real one, of the official SDK, that listens on
// this machine only and wants a token.
type orderDesk struct {
	token       string
	tunnelToken string
	address     string            // host:port
	words       map[string]string // what is said that nobody else is to read, by what it is
	calls       atomic.Int64      // of the tool
	wire        recording         // all that it heard and said
}

// startOrders starts the private server, and notes all that goes in and out of it: in the
// clear, as the last stretch of the way is the customer's own.
func (d *demo) startOrders(context.Context) error {
	desk := &orderDesk{token: "demo-" + strings.ToLower(rand.Text())}
	desk.words = map[string]string{
		"tool": orderTool, "argument": scripted.DemoOrder, "result": orderAnswer, "header": orderHeader, "token": desk.token,
	}
	server := sdk.NewServer(&sdk.Implementation{Name: "order-desk", Version: "1"}, nil)
	type arguments struct {
		Order string `json:"order" jsonschema:"the order's number"`
	}
	sdk.AddTool(server, &sdk.Tool{Name: orderTool, Description: "Says where an order is."},
		func(_ context.Context, _ *sdk.CallToolRequest, in arguments) (*sdk.CallToolResult, any, error) {
			desk.calls.Add(1)
			return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: in.Order + " " + orderAnswer}}}, nil, nil
		})
	inner := sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return server }, nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	desk.address = listener.Addr().String()
	front := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer "+desk.token {
				http.Error(w, "who are you?", http.StatusUnauthorized)
				return
			}
			w.Header().Set(orderHeader, "open")
			inner.ServeHTTP(w, r)
		}),
	}
	d.orders = desk
	d.start("private MCP server", func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { front.Close() })()
		err := front.Serve(recordingListener{listener, &desk.wire})
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		}
		return err
	})
	d.say("private", "an MCP server with the tool %s, on %s", orderTool, desk.address)
	return nil
}

// startGateway makes a tunnel and runs a gateway at its inner end, with what `bailey
// gateway init` and `bailey gateway` do.
func (d *demo) startGateway(ctx context.Context) (err error) {
	name := "demo"
	if d.tunnel, err = d.client.CreateTunnel(ctx, api.TunnelCreate{DisplayName: &name}); err != nil {
		return err
	}
	// The server's edge introduces itself while the server serves already.
	if err := until(ctx, func() (bool, error) {
		edges, err := d.client.TunnelEdges(ctx, d.tunnel.ID)
		return len(edges.Data) > 0, err
	}); err != nil {
		return err
	}
	inside := *d.p // the hands of whoever runs the gateway
	inside.Stdout, inside.Stderr = io.Discard, d.logFile
	dir := filepath.Join(d.dir, "gateway")
	if err := inside.initGateway(ctx, d.client, d.plane.URL(), new(gatewayDoc), gatewayInit{
		dir: dir, tunnel: string(d.tunnel.ID), routes: []string{orderServer + "=http://" + d.orders.address},
	}); err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(dir, tokenFile))
	if err != nil {
		return err
	}
	d.orders.tunnelToken = strings.TrimSpace(string(token))
	flags := &gatewayFlags{config: filepath.Join(dir, gatewayFile), listen: "127.0.0.1:0"}
	d.start("gateway", func(ctx context.Context) error { return inside.runGateway(ctx, flags) })
	var by string
	if err := until(ctx, func() (bool, error) {
		s, err := d.client.TunnelStatus(ctx, d.tunnel.ID)
		if err != nil || s.State != api.TunnelReady || len(s.Data) == 0 {
			return false, err
		}
		by = strings.ToUpper(string(s.Data[0].Protocol))
		return true, nil
	}); err != nil {
		return err
	}
	d.say("gateway", "dialled out to the edge by %s, for %s; nothing was let in", by, d.tunnel.Domain)
	return nil
}

func (d *demo) ordersURL() string { return "https://" + orderServer + "." + d.tunnel.Domain + "/mcp" }

// lockAway puts the private server's token into a vault, from where sessions use it and
// do not see it.
func (d *demo) lockAway(ctx context.Context) (err error) {
	if d.vault, err = d.client.CreateVault(ctx, api.VaultCreate{DisplayName: "demo"}); err != nil {
		return err
	}
	if _, err = d.client.CreateCredential(ctx, d.vault.ID, api.CredentialCreate{Auth: api.CredentialAuthCreate{
		Type: api.AuthStaticBearer, MCPServerURL: d.ordersURL(), Token: api.Secret(d.orders.token),
	}}); err != nil {
		return err
	}
	d.say("vault", "%s holds the token that the private server wants", d.vault.ID)
	return nil
}

// until asks until the answer is yes.
func until(ctx context.Context, ask func() (bool, error)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := ask(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// recordMax bounds a recording.
const recordMax = 16 << 20

// A recording keeps what passed by, each direction of each connection by itself as far as
// they can be told apart. The zero value is empty. It is safe for concurrent use.
type recording struct {
	mu      sync.Mutex
	streams map[any]*bytes.Buffer
	size    int
}

func (r *recording) add(stream any, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.size += len(data)
	if r.size > recordMax {
		return // a search says so
	}
	if r.streams == nil {
		r.streams = map[any]*bytes.Buffer{}
	}
	b := r.streams[stream]
	if b == nil {
		b = new(bytes.Buffer)
		r.streams[stream] = b
	}
	b.Write(data)
}

// see records what an edge passes on.
func (r *recording) see(id api.TunnelID, toGateway bool, data []byte) {
	r.add(struct {
		id api.TunnelID
		to bool
	}{id, toGateway}, data)
}

// search says which of the words passed by, in any case, and how many bytes did.
func (r *recording) search(words map[string]string) (found map[string]bool, size int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.size > recordMax {
		return nil, r.size, errors.New("more passed by than was kept")
	}
	found = map[string]bool{}
	for _, b := range r.streams {
		heard := bytes.ToLower(b.Bytes())
		for what, word := range words {
			if bytes.Contains(heard, bytes.ToLower([]byte(word))) {
				found[what] = true
			}
		}
	}
	return found, r.size, nil
}

// A recordingListener keeps what its connections hear and say.
type recordingListener struct {
	net.Listener
	kept *recording
}

func (l recordingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &recordingConn{c, l.kept}, nil
}

type recordingConn struct {
	net.Conn
	kept *recording
}

// A direction of a connection.
type direction struct {
	of  *recordingConn
	out bool
}

func (c *recordingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.kept.add(direction{c, false}, p[:n])
	return n, err
}

func (c *recordingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.kept.add(direction{c, true}, p[:n])
	return n, err
}
