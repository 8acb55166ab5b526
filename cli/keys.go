package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/tunnel"
)

func (p *Program) keysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "keys",
		Aliases: []string{"key"},
		Short:   "Create, list and revoke API keys",
		Long: `An API key may do everything in the workspace; managing tunnels needs --scope, and
opening shells --shell. It is shown once, when it is created. An edge key (--type
edge_key) is for "bailey edge" alone. The keys of workers are under
"bailey environments keys".`,
	}
	c := p.connectFlags(cmd)
	cmd.AddCommand(
		p.keyCreate(c, false, "Create an API key", `  bailey keys create --name ci --expires-in 720h
  bailey keys create --name laptop --save laptop.key
  bailey keys create --name office-gateway --scope tunnels --save tunnels.key`),
		p.keyList(c, false, "List API keys, the newest first", `  bailey keys list`),
		p.keyRevoke(c, false, "End an API key at once", `  bailey keys revoke apikey_…`),
	)
	return cmd
}

// The three commands below are the same for API keys and for the keys of an
// environment, whose id is then their first argument.

// keyCommand returns the bare command and, for its arguments, whose keys it is
// about.
func keyCommand(inEnv bool, verb, arg, short, example string) (cmd *cobra.Command, env func(args []string) api.EnvironmentID) {
	cmd = &cobra.Command{Short: short, Example: example}
	words := []string{verb}
	if inEnv {
		words = append(words, "ENVIRONMENT")
	}
	if arg != "" {
		words = append(words, arg)
	}
	cmd.Use = strings.Join(words, " ")
	cmd.Args = cobra.ExactArgs(len(words) - 1)
	return cmd, func(args []string) api.EnvironmentID {
		if inEnv {
			return api.EnvironmentID(args[0])
		}
		return ""
	}
}

func (p *Program) keyCreate(c *connection, inEnv bool, short, example string) *cobra.Command {
	cmd, env := keyCommand(inEnv, "create", "", short, example)
	name := cmd.Flags().String("name", "", "a `name` to know the key by")
	expires := timeFlag(cmd, "expires-in", 0, "how long the key is good for, such as 30d; 0 is for ever")
	shell := false
	kind := ""
	var scopes []string
	if !inEnv {
		cmd.Flags().StringSliceVar(&scopes, "scope", nil, "what the key is good for: `workspace|tunnels`, or both with a comma; workspace, which is everything but tunnels, if it is left out")
		cmd.Flags().StringVar(&kind, "type", string(api.KeyAPI), "the `kind` of key: api_key, or edge_key for \"bailey edge\", which carries tunnels and can do nothing else")
		cmd.Flags().BoolVar(&shell, "shell", false, "let the key open shells into the boxes of sessions; only a key that may can give that on")
	}
	save := cmd.Flags().String("save", "", "write the key to a new `file` (mode 0600) and do not show it")
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		if *name == "" {
			return usageError(cmd, fmt.Errorf("a key needs --name"))
		}
		in := api.KeyCreate{Name: *name, Type: api.KeyKind(kind), ExpiresAt: expiry(*expires), Shell: shell}
		for _, s := range scopes {
			in.Scopes = append(in.Scopes, api.KeyScope(s))
		}
		// Before the key exists, so that none is made that nobody gets to see.
		keep, err := newSecretFile(*save)
		if err != nil {
			return err
		}
		k, err := cl.CreateKey(ctx, env(args), in)
		if err != nil {
			keep.discard()
			return err
		}
		if err := keep.write(k.Secret); err != nil {
			return fmt.Errorf("the key %s was created but not saved; revoke it and create another: %w", k.ID, err)
		}
		if keep != nil {
			k.Secret = ""
		}
		return p.printKey(*out, k)
	})
	return cmd
}

// A secretFile is a file for a secret that is being made; nil is none.
type secretFile struct {
	f      *os.File
	become string // what it replaces once it is whole; "" is a new file
}

func newSecretFile(path string) (*secretFile, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, usagef("--save: %v", err)
	}
	return &secretFile{f: f}, nil
}

// newTokenFile is newSecretFile for a tunnel's token, which may take the place of another of
// the same tunnel: that is how a gateway gets the one in force.
func newTokenFile(path string, id api.TunnelID) (*secretFile, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return newSecretFile(path)
	}
	if old, err := tunnel.ParseToken(string(text)); err != nil || !old.IsFor(id) {
		return nil, usagef("--save: %s is there, and holds no token of this tunnel: name another file", path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".") // mode 0600
	if err != nil {
		return nil, usagef("--save: %v", err)
	}
	return &secretFile{f, path}, nil
}

func (s *secretFile) write(secret string) error {
	if s == nil {
		return nil
	}
	_, err := s.f.WriteString(secret + "\n")
	if cerr := s.f.Close(); err == nil {
		err = cerr
	}
	if s.become != "" && err == nil {
		err = os.Rename(s.f.Name(), s.become)
	}
	return err
}

func (s *secretFile) discard() {
	if s != nil {
		s.f.Close()
		os.Remove(s.f.Name())
	}
}

func (p *Program) keyList(c *connection, inEnv bool, short, example string) *cobra.Command {
	cmd, env := keyCommand(inEnv, "list", "", short, example)
	l := addListFlags(cmd, false)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		return printList(p, l, cl.Keys(ctx, env(args), l.options()),
			[]string{"ID", "NAME", "ENDS IN", "CREATED", "EXPIRES", "LAST USED", "REVOKED"},
			func(k *api.Key) []string {
				return []string{string(k.ID), k.Name, "…" + k.Hint, when(k.CreatedAt), whenPtr(k.ExpiresAt), whenPtr(k.LastUsedAt), whenPtr(k.RevokedAt)}
			})
	})
	return cmd
}

func (p *Program) keyRevoke(c *connection, inEnv bool, short, example string) *cobra.Command {
	cmd, env := keyCommand(inEnv, "revoke", "KEY", short, example)
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		k, err := cl.RevokeKey(ctx, env(args), api.KeyID(args[len(args)-1]))
		if err != nil {
			return err
		}
		return p.printKey(*out, k)
	})
	return cmd
}

func (p *Program) printKey(out string, k *api.Key) error {
	note := ""
	if k.Secret != "" {
		note = "keep the key now: it is not shown again"
	}
	var may []string
	for _, s := range k.Scopes {
		may = append(may, map[api.KeyScope]string{api.ScopeWorkspace: "use the workspace", api.ScopeTunnels: "manage tunnels"}[s])
	}
	if k.Shell {
		may = append(may, "open shells")
	}
	return p.printObject(out, k,
		field{"id", string(k.ID)},
		field{"name", k.Name},
		field{"environment", string(k.EnvironmentID)},
		field{"key", k.Secret},
		field{"", note},
		field{"may", strings.Join(may, ", ")},
		field{"created", when(k.CreatedAt)},
		field{"expires", whenPtr(k.ExpiresAt)},
		field{"revoked", whenPtr(k.RevokedAt)},
	)
}
