package cli

import (
	"context"
	"fmt"
	"iter"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/client"
)

// A noun is what the commands list, get and archive of a kind of object need to know of
// it, where they are the same but for that.
type noun[T any] struct {
	arg        string // of the object's id
	example    string // with %s for the verb
	list       string // the example of the list
	what, many string // "a rule", "rules"
	archive    string // what follows from archiving one
	header     []string
	row        func(*T) []string
	all        func(*client.Client, context.Context, client.ListOptions) iter.Seq2[*T, error]
	get, end   func(ctx context.Context, cl *client.Client, id string) (*T, error)
	print      func(out string, v *T) error
}

// nounCommands makes the commands list, get and archive.
func nounCommands[T any](c *connection, n noun[T]) []*cobra.Command {
	list := &cobra.Command{
		Use:     "list",
		Short:   fmt.Sprintf("List %s, the newest first", n.many),
		Example: "  " + n.list,
	}
	l := addListFlags(list, true)
	list.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		return printList(c.p, l, n.all(cl, ctx, l.options()), n.header, n.row)
	})
	one := func(verb, short, long string, do func(context.Context, *client.Client, string) (*T, error)) *cobra.Command {
		cmd := &cobra.Command{
			Use: verb + " " + n.arg, Short: short, Long: long, Example: "  " + fmt.Sprintf(n.example, verb), Args: cobra.ExactArgs(1),
		}
		out := outputFlag(cmd)
		cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
			v, err := do(ctx, cl, args[0])
			if err != nil {
				return err
			}
			return n.print(*out, v)
		})
		return cmd
	}
	return []*cobra.Command{
		list,
		one("get", "Show "+n.what, "", n.get),
		one("archive", "End "+n.what+", for good", n.archive, n.end),
	}
}
