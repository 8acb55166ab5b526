package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

func (p *Program) sessionsShell(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "shell SESSION",
		Short: "Open a shell in the box of a session",
		Long: `Opens a live shell in the box in which a session's tools run, beside them. It
goes through the server: the worker only dials out. The key needs the right to
open shells ("bailey keys create --name NAME --shell"), and the worker's operator
has to allow them. Both sides keep an audit record of it.

The exit status is the shell's own. Standard input that is no terminal is typed
into the shell, and its end is the end of the shell.`,
		Example: `  bailey sessions shell sesn_…
  echo 'df -h /workspace; exit' | bailey sessions shell sesn_…`,
		Args: cobra.ExactArgs(1),
	}
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		return p.shell(ctx, cl, api.SessionID(args[0]))
	})
	return cmd
}

func (p *Program) shell(ctx context.Context, cl *client.Client, id api.SessionID) error {
	in, interactive := p.Stdin.(*os.File)
	interactive = interactive && term.IsTerminal(int(in.Fd()))
	size := api.ShellSize{Columns: 80, Rows: 24}
	if interactive {
		size = terminalSize(in, size)
	}
	if isTerminal(p.Stderr) {
		fmt.Fprintf(p.Stderr, "waiting for the session's worker …\n")
	}
	p.hintWorkersOf(ctx, cl, id)
	conn, err := cl.OpenShell(ctx, id, size)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if interactive {
		// From here on Ctrl-C and its like are bytes for the shell.
		before, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return fmt.Errorf("set up the terminal: %w", err)
		}
		defer func() { _ = term.Restore(int(in.Fd()), before) }()
		go resizes(ctx, conn, in, size)
	}
	// A read of standard input cannot be cut short: the goroutine ends with the process,
	// or with the input.
	go p.typeInto(ctx, conn)
	end, err := p.show(ctx, conn)
	switch {
	case err != nil:
		return err
	case end.Code == api.ShellCodeNone:
		return fmt.Errorf("the shell was ended: %s", end.Reason)
	case end.Code != 0:
		return &already{end.Code} // the shell has said why, if it wanted to
	}
	return nil
}

// terminalSize is what a terminal says, or otherwise.
func terminalSize(f *os.File, otherwise api.ShellSize) api.ShellSize {
	columns, rows, err := term.GetSize(int(f.Fd()))
	size := api.ShellSize{Columns: columns, Rows: rows}
	if err != nil || size.Check() != nil {
		return otherwise
	}
	return size
}

// resizes tells the shell when the terminal gets another size.
func resizes(ctx context.Context, conn *client.ShellConn, in *os.File, size api.ShellSize) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	defer signal.Stop(changed)
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		now := terminalSize(in, size)
		if now == size {
			continue
		}
		size = now
		if conn.Send(ctx, api.ShellFrame{Note: &api.ShellNote{Type: api.ShellResize, Size: &now}}) != nil {
			return
		}
	}
}

// endOfInput is what a terminal sends for the end of its input, at the beginning of a
// line.
const endOfInput = 4

// How long to wait for the shell to end before the end of the input is typed again: at
// first, and at most.
const (
	endAgainMin = 100 * time.Millisecond
	endAgainMax = 5 * time.Second
)

// typeInto sends standard input to the shell.
func (p *Program) typeInto(ctx context.Context, conn *client.ShellConn) {
	buf := make([]byte, api.ShellDataMax-2)
	last := byte('\n')
	for {
		n, err := p.Stdin.Read(buf)
		data := buf[:n]
		if n > 0 {
			last = data[n-1]
		}
		if errors.Is(err, io.EOF) {
			if last != '\n' {
				data = append(data, '\n')
			}
			data = append(data, endOfInput)
		}
		if len(data) > 0 && conn.Send(ctx, api.ShellFrame{Data: data}) != nil {
			return
		}
		if errors.Is(err, io.EOF) {
			endInput(ctx, conn)
		}
		if err != nil {
			return
		}
	}
}

// endInput types the end of the input again until the shell has ended. What is typed
// while a program has the terminal is that program's; one that reads nothing leaves it
// to the shell, to which it then means nothing.
func endInput(ctx context.Context, conn *client.ShellConn) {
	for wait := endAgainMin; ; wait = min(2*wait, endAgainMax) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if conn.Send(ctx, api.ShellFrame{Data: []byte{endOfInput}}) != nil {
			return
		}
	}
}

// show prints what comes from the shell until it ends. It is not cleaned: the person
// asked for a terminal in the box, and programs there draw on it.
func (p *Program) show(ctx context.Context, conn *client.ShellConn) (api.ShellNote, error) {
	for {
		f, err := conn.Receive(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return api.ShellNote{Code: api.ShellCodeNone, Reason: "the server closed the connection"}, nil
		case err != nil:
			return api.ShellNote{}, err
		case f.Note != nil && f.Note.Type == api.ShellExit:
			return *f.Note, nil
		case f.Note != nil:
			continue
		}
		if _, err := p.Stdout.Write(f.Data); err != nil {
			return api.ShellNote{}, err
		}
	}
}
