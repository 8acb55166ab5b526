package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

func (p *Program) credentialsCommand(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "credentials",
		Aliases: []string{"credential", "creds"},
		Short:   "Put credentials into a vault, and take them out of use",
		Long: `A credential is a token for an MCP server (static_bearer), a person's consent to use
one (mcp_oauth), or a secret for tools in a box (environment_variable). Secrets are
read from a file or from standard input, and never shown again.`,
	}
	cmd.AddCommand(
		p.credentialsCreate(c), p.credentialsAuthorize(c), p.credentialsGet(c), p.credentialsList(c), p.credentialsUpdate(c),
		p.credentialsArchive(c), p.credentialsDelete(c), p.credentialsValidate(c),
	)
	return cmd
}

// secretUsage is what every --secret-file says.
const secretUsage = "read the secret from a `file`; without it, or with -, it is read from standard input"

// readSecret reads a secret from a file or, with "" or "-", from standard input, where a
// person is asked for it without an echo. An end of line after it is not part of it.
func (p *Program) readSecret(path, what string) (api.Secret, error) {
	if path == "" {
		path = "-"
	}
	in, isFile := p.Stdin.(*os.File)
	if path == "-" && isFile && term.IsTerminal(int(in.Fd())) {
		fmt.Fprintf(p.Stderr, "%s (not shown): ", what)
		text, err := term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(p.Stderr)
		if err != nil {
			return "", fmt.Errorf("read the secret: %w", err)
		}
		return checkSecret(string(text), "what was typed")
	}
	data, err := p.readInput(path)
	if err != nil {
		return "", err
	}
	if path == "-" {
		path = "standard input"
	}
	return checkSecret(string(data), path)
}

func checkSecret(text, from string) (api.Secret, error) {
	text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	if text == "" {
		return "", usagef("%s is empty; it should hold the secret", from)
	}
	return api.Secret(text), nil
}

func (p *Program) credentialsCreate(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create VAULT",
		Short: "Put a token or a secret into a vault",
		Long: `With --url, the secret is a token for the MCP server there. With --variable, it is a
secret for tools: the box has a placeholder in that variable, which is replaced in
requests to the hosts given with --host, or to all that its environment permits. For
anything else, give the whole request with --file.`,
		Example: `  bailey vaults credentials create vlt_… --url https://mcp.example.com/mcp --secret-file token.txt
  pass show api-key | bailey vaults credentials create vlt_… --variable API_KEY --host api.example.com
  bailey vaults credentials create vlt_… --file credential.yaml`,
		Args: cobra.ExactArgs(1),
	}
	f := cmd.Flags()
	f.String("name", "", "a `name` to know the credential by")
	url := f.String("url", "", "the MCP server's `URL`")
	variable := f.String("variable", "", "the `name` of an environment variable")
	hosts := f.StringArray("host", nil, "a `host` that the variable's secret may be sent to, or *.name for all below it; may be repeated")
	locations := f.StringSlice("in", []string{"header"}, "where in a request the variable's secret may stand: header, body")
	secret := f.String("secret-file", "", secretUsage)
	metadata := f.StringArray("metadata", nil, metadataUsage)
	file, out := fileFlag(cmd), outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		var in api.CredentialCreate
		if err := p.readObject(*file, &in); err != nil {
			return err
		}
		setOptional(cmd, "name", &in.DisplayName)
		if f.Changed("metadata") {
			m, err := metadataOf(*metadata)
			if err != nil {
				return err
			}
			in.Metadata = m
		}
		if *file == "" {
			if (*url == "") == (*variable == "") {
				return usageError(cmd, errors.New("give --url or --variable, or the whole request with --file"))
			}
			value, err := p.readSecret(*secret, "secret")
			if err != nil {
				return err
			}
			in.Auth = api.CredentialAuthCreate{Type: api.AuthStaticBearer, MCPServerURL: *url, Token: value}
			if *variable != "" {
				if in.Auth, err = variableAuth(*variable, value, *hosts, *locations); err != nil {
					return err
				}
			}
		}
		cred, err := cl.CreateCredential(ctx, api.VaultID(args[0]), in)
		if err != nil {
			return err
		}
		return p.printCredential(*out, cred)
	})
	return cmd
}

func variableAuth(name string, value api.Secret, hosts, locations []string) (api.CredentialAuthCreate, error) {
	auth := api.CredentialAuthCreate{
		Type: api.AuthEnvironmentVariable, SecretName: name, SecretValue: value,
		Networking: &api.CredentialNetworking{Type: api.NetworkUnrestricted},
	}
	if len(hosts) > 0 {
		auth.Networking = &api.CredentialNetworking{Type: api.NetworkLimited, AllowedHosts: hosts}
	}
	patch, err := locationPatch(locations)
	auth.InjectionLocation = api.Some(patch)
	return auth, err
}

// locationPatch reads --in, which says all there is to say of the places.
func locationPatch(locations []string) (api.InjectionLocationPatch, error) {
	for _, l := range locations {
		if l != "header" && l != "body" {
			return api.InjectionLocationPatch{}, usagef("--in %q is not header or body", l)
		}
	}
	return api.InjectionLocationPatch{
		Header: api.Some(slices.Contains(locations, "header")), Body: api.Some(slices.Contains(locations, "body")),
	}, nil
}

func (p *Program) credentialsGet(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "get VAULT CREDENTIAL",
		Short:   "Show a credential, without its secrets",
		Example: `  bailey vaults credentials get vlt_… vcrd_…`,
		Args:    cobra.ExactArgs(2),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		cred, err := cl.GetCredential(ctx, api.VaultID(args[0]), api.CredentialID(args[1]))
		if err != nil {
			return err
		}
		return p.printCredential(*out, cred)
	})
	return cmd
}

func (p *Program) credentialsList(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list VAULT",
		Short:   "List the credentials of a vault, the newest first",
		Example: `  bailey vaults credentials list vlt_…`,
		Args:    cobra.ExactArgs(1),
	}
	l := addListFlags(cmd, true)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		return printList(p, l, cl.Credentials(ctx, api.VaultID(args[0]), l.options()), []string{"ID", "TYPE", "FOR", "NAME", "CREATED"},
			func(c *api.Credential) []string {
				return []string{string(c.ID), c.Auth.Type, credentialTarget(c), archivedName(deref(c.DisplayName), c.ArchivedAt != nil), when(c.CreatedAt)}
			})
	})
	return cmd
}

func credentialTarget(c *api.Credential) string {
	if c.Auth.Type == api.AuthEnvironmentVariable {
		return c.Auth.SecretName
	}
	return c.Auth.MCPServerURL
}

func (p *Program) credentialsUpdate(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "update VAULT CREDENTIAL",
		Short: "Give a credential another secret, or change what it may do",
		Long: `Changes what is given and leaves the rest as it is. With --secret-file a token or a
variable's secret is replaced: sessions that run use the new one from then on.
--metadata key= removes a key. What a credential is for cannot change.`,
		Example: `  bailey vaults credentials update vlt_… vcrd_… --secret-file new-token.txt
  bailey vaults credentials update vlt_… vcrd_… --name "read-only token"`,
		Args: cobra.ExactArgs(2),
	}
	f := cmd.Flags()
	f.String("name", "", "a `name` to know the credential by")
	hosts := f.StringArray("host", nil, "a `host` that a variable's secret may be sent to, in place of all there are; may be repeated")
	locations := f.StringSlice("in", nil, "where in a request a variable's secret may stand: header, body")
	secret := f.String("secret-file", "", "read another secret from a `file` (- is standard input)")
	metadata := f.StringArray("metadata", nil, metadataUsage)
	file, out := fileFlag(cmd), outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		if *file == "" && !changed(cmd, "name", "host", "in", "secret-file", "metadata") {
			return nothingToDo(cmd)
		}
		vault, id := api.VaultID(args[0]), api.CredentialID(args[1])
		var in api.CredentialUpdate
		if err := p.readObject(*file, &in); err != nil {
			return err
		}
		setPatch(cmd, "name", &in.DisplayName)
		if f.Changed("metadata") {
			patch, err := metadataPatch(*metadata)
			if err != nil {
				return err
			}
			in.Metadata = patch
		}
		if changed(cmd, "host", "in", "secret-file") {
			if in.Auth.Set {
				return usageError(cmd, errors.New("--file has auth already: leave out --host, --in and --secret-file"))
			}
			cred, err := cl.GetCredential(ctx, vault, id)
			if err != nil {
				return err
			}
			auth := api.CredentialAuthUpdate{Type: cred.Auth.Type}
			if f.Changed("secret-file") {
				if err := p.newSecret(&auth, *secret); err != nil {
					return err
				}
			}
			if f.Changed("host") {
				auth.Networking = api.Some(api.CredentialNetworking{Type: api.NetworkLimited, AllowedHosts: *hosts})
			}
			if f.Changed("in") {
				patch, err := locationPatch(*locations)
				if err != nil {
					return err
				}
				auth.InjectionLocation = api.Some(patch)
			}
			in.Auth = api.Some(auth)
		}
		cred, err := cl.UpdateCredential(ctx, vault, id, in)
		if err != nil {
			return err
		}
		return p.printCredential(*out, cred)
	})
	return cmd
}

// newSecret reads another secret for a credential.
func (p *Program) newSecret(auth *api.CredentialAuthUpdate, path string) error {
	value, err := p.readSecret(path, "new secret")
	if err != nil {
		return err
	}
	switch auth.Type {
	case api.AuthStaticBearer:
		auth.Token = api.Some(value)
	case api.AuthEnvironmentVariable:
		auth.SecretValue = api.Some(value)
	default:
		return usagef("a credential of type %s has several secrets: authorize it again with `bailey vaults credentials authorize`, or give them with --file", auth.Type)
	}
	return nil
}

func (p *Program) credentialsArchive(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "archive VAULT CREDENTIAL",
		Short: "Archive a credential and remove its secrets, for good",
		Long: `Archives a credential and removes its secrets: sessions that run lose it at once. What
it was for is free for another credential.`,
		Example: `  bailey vaults credentials archive vlt_… vcrd_…`,
		Args:    cobra.ExactArgs(2),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		cred, err := cl.ArchiveCredential(ctx, api.VaultID(args[0]), api.CredentialID(args[1]))
		if err != nil {
			return err
		}
		return p.printCredential(*out, cred)
	})
	return cmd
}

func (p *Program) credentialsDelete(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete VAULT CREDENTIAL",
		Short:   "Delete a credential",
		Example: `  bailey vaults credentials delete vlt_… vcrd_…`,
		Args:    cobra.ExactArgs(2),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		if err := cl.DeleteCredential(ctx, api.VaultID(args[0]), api.CredentialID(args[1])); err != nil {
			return err
		}
		return p.printDeleted(*out, api.Deleted{ID: args[1], Type: "vault_credential_deleted"})
	})
	return cmd
}

func (p *Program) credentialsValidate(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "validate VAULT CREDENTIAL",
		Short: "Try an mcp_oauth credential at its MCP server",
		Long: `Has the server connect to the credential's MCP server and list its tools. A token that
is not accepted is renewed, if it can be, and tried again. The exit status is 0 if the
credential works.`,
		Example: `  bailey vaults credentials validate vlt_… vcrd_…`,
		Args:    cobra.ExactArgs(2),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		v, err := cl.ValidateCredential(ctx, api.VaultID(args[0]), api.CredentialID(args[1]))
		if err != nil {
			return err
		}
		var failed, renewed string
		if v.MCPProbe != nil {
			failed = v.MCPProbe.Method + responseText(v.MCPProbe.HTTPResponse)
		}
		if v.Refresh != nil {
			renewed = v.Refresh.Status + responseText(v.Refresh.HTTPResponse)
		}
		err = p.printObject(*out, v,
			field{"credential", string(v.CredentialID)},
			field{"status", v.Status},
			field{"failed at", failed},
			field{"renewal", renewed},
			field{"at", when(v.ValidatedAt)},
		)
		if err == nil && v.Status != api.CredentialValid {
			err = fmt.Errorf("credential %s is %s", v.CredentialID, v.Status)
		}
		return err
	})
	return cmd
}

func responseText(r *api.ProbeResponse) string {
	if r == nil {
		return ""
	}
	return fmt.Sprintf(": %d %s", r.StatusCode, oneLine(r.Body, 200))
}

func (p *Program) printCredential(out string, c *api.Credential) error {
	fields := []field{
		{"id", string(c.ID)},
		{"vault", string(c.VaultID)},
		{"name", deref(c.DisplayName)},
		{"type", c.Auth.Type},
		{"for", credentialTarget(c)},
	}
	if n := c.Auth.Networking; n != nil {
		var places []string
		if c.Auth.InjectionLocation.Header {
			places = append(places, "header")
		}
		if c.Auth.InjectionLocation.Body {
			places = append(places, "body")
		}
		hosts := strings.Join(n.AllowedHosts, " ")
		if n.Type == api.NetworkUnrestricted {
			hosts = "all that the environment permits"
		}
		fields = append(fields, field{"hosts", hosts}, field{"put into", strings.Join(places, ", ")})
	}
	if c.Auth.Type == api.AuthMCPOAuth {
		renewal := "none: authorize again when the token ends"
		if r := c.Auth.Refresh; r != nil {
			renewal = "by " + r.TokenEndpoint
		}
		fields = append(fields, field{"token ends", whenPtr(c.Auth.ExpiresAt)}, field{"renewed", renewal})
	}
	return p.printObject(out, c, append(fields,
		field{"metadata", metadataText(c.Metadata)},
		field{"created", when(c.CreatedAt)},
		field{"updated", when(c.UpdatedAt)},
		field{"archived", whenPtr(c.ArchivedAt)},
	)...)
}

// future is a time for an API that takes none in the past.
func future(t time.Time) *time.Time {
	if !t.After(time.Now()) {
		return nil
	}
	return &t
}
