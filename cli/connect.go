package cli

import (
	"context"
	"fmt"
	"iter"
	"net"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/client"
)

const (
	defaultURL     = "http://127.0.0.1:8484"
	defaultKeyFile = "bailey-data/admin.key"

	keyFileMax = 4 << 10 // bytes
)

// A connection is where a command's server is and who asks, from flags and
// environment.
type connection struct {
	p                 *Program
	url, key, keyFile string
	known             string // the server's address, as the command knows it by itself
}

// connectFlags adds the flags of a connection to cmd and its subcommands.
func (p *Program) connectFlags(cmd *cobra.Command) *connection {
	c := &connection{p: p}
	flags := cmd.PersistentFlags()
	flags.StringVar(&c.url, "url", "", "the server's `address` (BAILEY_URL; default "+defaultURL+")")
	flags.StringVar(&c.key, "key", "", "the API `key` (BAILEY_KEY); others on this machine may see it, so prefer --key-file")
	flags.StringVar(&c.keyFile, "key-file", "", "a `file` with the API key (BAILEY_KEY_FILE; default "+defaultKeyFile+" for a server on this machine)")
	must(cmd.MarkPersistentFlagFilename("key-file"))
	return c
}

func (c *connection) client() (*client.Client, error) {
	key, _, err := c.credential()
	if err != nil {
		return nil, err
	}
	cl, err := client.New(client.Config{BaseURL: c.address(), Key: key})
	if err != nil {
		return nil, usagef("--url or BAILEY_URL: %q is not an http or https URL", c.address())
	}
	return cl, nil
}

// run makes a command's function of one that needs a client.
func (c *connection) run(do func(ctx context.Context, cl *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		cl, err := c.client()
		if err != nil {
			return err
		}
		return do(cmd.Context(), cl, args)
	}
}

func (c *connection) address() string {
	if c.url != "" {
		return c.url
	}
	if v, ok := c.p.Env("BAILEY_URL"); ok && v != "" {
		return v
	}
	if c.known != "" {
		return c.known
	}
	return defaultURL
}

// credential returns the key and where it came from; both are "" if there is none,
// which the server then says.
func (c *connection) credential() (key, source string, err error) {
	env := func(name string) string {
		v, _ := c.p.Env(name)
		return strings.TrimSpace(v)
	}
	switch {
	case c.key != "" && c.keyFile != "":
		return "", "", usagef("--key and --key-file: give one of them")
	case c.key != "":
		return strings.TrimSpace(c.key), "--key", nil
	case c.keyFile != "":
		key, err = readKeyFile(c.keyFile)
		return key, "--key-file " + c.keyFile, err
	case env("BAILEY_KEY") != "":
		return env("BAILEY_KEY"), "BAILEY_KEY", nil
	case env("BAILEY_KEY_FILE") != "":
		key, err = readKeyFile(env("BAILEY_KEY_FILE"))
		return key, "BAILEY_KEY_FILE", err
	}
	// The key of a server that was started here goes to a server on this machine,
	// never to another one.
	if _, err := os.Stat(defaultKeyFile); err != nil || !onThisMachine(c.address()) {
		return "", "", nil
	}
	key, err = readKeyFile(defaultKeyFile)
	return key, defaultKeyFile, err
}

func onThisMachine(rawURL string) bool {
	u, err := url.Parse(rawURL)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// readKeyFile reads a file that holds one key.
func readKeyFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", usagef("read the key: %v", err)
	}
	defer f.Close()
	buf := make([]byte, keyFileMax)
	n, _ := f.Read(buf)
	key := strings.TrimSpace(string(buf[:n]))
	if key == "" || strings.ContainsAny(key, " \t\r\n") {
		return "", usagef("%s does not hold a key", path)
	}
	return key, nil
}

// listFlags are the flags of a list.
type listFlags struct {
	limit    int
	archived bool
	out      *string
}

const listDefault = 100

func addListFlags(cmd *cobra.Command, archivable bool) *listFlags {
	l := new(listFlags)
	cmd.Flags().IntVarP(&l.limit, "limit", "n", listDefault, "how many to show at most; 0 is all")
	if archivable {
		cmd.Flags().BoolVar(&l.archived, "archived", false, "show archived ones too")
	}
	l.out = outputFlag(cmd)
	return l
}

// options asks the server for pages no larger than what is wanted.
func (l *listFlags) options() client.ListOptions {
	o := client.ListOptions{IncludeArchived: l.archived, PageSize: pageSize}
	if l.limit > 0 {
		o.PageSize = min(l.limit, pageSize)
	}
	return o
}

const pageSize = 100

// take collects at most limit objects of a list, all if limit is 0.
func take[T any](list iter.Seq2[T, error], limit int) ([]T, error) {
	out := []T{} // [] in JSON, not null
	for v, err := range list {
		if err != nil {
			return nil, err
		}
		out = append(out, v)
		if len(out) == limit {
			break
		}
	}
	return out, nil
}

// printList prints a list: a JSON array, or a table with a row each.
func printList[T any](p *Program, l *listFlags, list iter.Seq2[T, error], header []string, row func(T) []string) error {
	if l.limit < 0 {
		return usagef("--limit must not be negative")
	}
	objects, err := take(list, l.limit)
	if err != nil {
		return err
	}
	if *l.out == outJSON {
		return printJSON(p.Stdout, objects)
	}
	rows := make([][]string, len(objects))
	for i, v := range objects {
		rows[i] = row(v)
	}
	if err := p.printRows(header, rows); err != nil {
		return err
	}
	if l.limit > 0 && len(objects) == l.limit {
		fmt.Fprintf(p.Stderr, "the first %d; there may be more (--limit 0 shows all)\n", l.limit)
	}
	return nil
}

// printObject prints one object: the API's JSON, or a table of fields.
func (p *Program) printObject(out string, v any, fields ...field) error {
	if out == outJSON {
		return printJSON(p.Stdout, v)
	}
	return p.printFields(fields...)
}
