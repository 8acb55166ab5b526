package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

func (p *Program) federationCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "federation",
		Short: "Let workloads in by the identity their platform gives them",
		Long: `A pod, a pipeline or a virtual machine has an identity of its platform's: a signed
token (OpenID Connect). Federation exchanges it for an access token of this server
that lives for minutes, so that no key has to be kept where the workload runs.

An issuer is whose signature is believed, a service account is who the workload is
here, and a rule says which identities of the one are the other. The official SDKs
do the exchange by themselves when they are told the rule, the organization
(` + api.OrganizationDefault + `) and where the token is.`,
	}
	c := p.connectFlags(cmd)
	cmd.AddCommand(p.federationIssuers(c), p.federationAccounts(c), p.federationRules(c), p.federationHistory(c))
	return cmd
}

// -- issuers -----------------------------------------------------------------------

func (p *Program) federationIssuers(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "issuers",
		Aliases: []string{"issuer"},
		Short:   "Say whose signed identities are believed",
	}
	cmd.AddCommand(p.issuersCreate(c))
	cmd.AddCommand(nounCommands(c, noun[api.FederationIssuer]{
		arg: "ISSUER", example: "bailey federation issuers %s fdis_…", list: "bailey federation issuers list",
		what: "an issuer", many: "issuers",
		archive: `Ends the trust in an issuer: nothing that its rules have given out is good any more.`,
		header:  []string{"ID", "NAME", "URL", "KEYS", "CREATED"},
		row: func(i *api.FederationIssuer) []string {
			return []string{string(i.ID), archivedName(i.Name, i.ArchivedAt != nil), i.IssuerURL, string(i.JWKS.Type), when(i.CreatedAt)}
		},
		all: (*client.Client).Issuers,
		get: func(ctx context.Context, cl *client.Client, id string) (*api.FederationIssuer, error) {
			return cl.GetIssuer(ctx, api.IssuerID(id))
		},
		end: func(ctx context.Context, cl *client.Client, id string) (*api.FederationIssuer, error) {
			return cl.ArchiveIssuer(ctx, api.IssuerID(id))
		},
		print: p.printIssuer,
	})...)
	return cmd
}

func (p *Program) issuersCreate(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Believe an issuer",
		Long: `Registers an issuer by its URL, which its tokens name as iss, to the letter. Its
keys are found by OpenID Connect discovery at that URL, at another one
(--discovery-base), at a fixed one (--jwks-url), or in a file (--keys), which is
then all that counts. An issuer in a private network has to be in the server's
mcp-allowed-addresses.`,
		Example: `  bailey federation issuers create --name cluster --issuer-url https://kubernetes.default.svc --jwks-url https://10.0.0.1:6443/openid/v1/jwks --ca ca.crt
  bailey federation issuers create --name github --issuer-url https://token.actions.githubusercontent.com`,
	}
	f := cmd.Flags()
	var in api.FederationIssuerCreate
	f.StringVar(&in.Name, "name", "", "a `name` of lower-case letters, digits and hyphens")
	f.StringVar(&in.IssuerURL, "issuer-url", "", "the issuer's `URL`, as its tokens name it")
	base := f.String("discovery-base", "", "the `URL` of its discovery, if that is another")
	jwksURL := f.String("jwks-url", "", "the `URL` of its keys, without discovery")
	keys := f.String("keys", "", "a `file` with its keys, a JSON Web Key Set; nothing is fetched")
	ca := f.String("ca", "", "a `file` with the CAs of its web server in PEM, instead of the system's")
	lifetime := timeFlag(cmd, "max-lifetime", api.JWTLifetimeDefault, "how long its tokens may be valid at most; up to 49h")
	reuse := f.Bool("reuse", false, "let a token that has an id (jti) be exchanged more than once")
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		if in.Name == "" || in.IssuerURL == "" {
			return usageError(cmd, fmt.Errorf("an issuer needs --name and --issuer-url"))
		}
		jwks, err := p.jwksOf(cmd, *base, *jwksURL, *keys, *ca)
		if err != nil {
			return err
		}
		once, seconds := !*reuse, int64(*lifetime/time.Second)
		in.JWKS, in.CheckJTI, in.MaxLifetime = jwks, &once, &seconds
		i, err := cl.CreateIssuer(ctx, in)
		if err != nil {
			return err
		}
		return p.printIssuer(*out, i)
	})
	return cmd
}

// jwksOf reads the flags that say where an issuer's keys are.
func (p *Program) jwksOf(cmd *cobra.Command, base, jwksURL, keys, ca string) (*api.JWKS, error) {
	given := slices.DeleteFunc([]string{base, jwksURL, keys}, func(s string) bool { return s == "" })
	if len(given) > 1 {
		return nil, usageError(cmd, fmt.Errorf("--discovery-base, --jwks-url and --keys: give one of them"))
	}
	jwks := &api.JWKS{Type: api.JWKSDiscovery}
	switch {
	case base != "":
		jwks.DiscoveryBase = &base
	case jwksURL != "":
		jwks.Type, jwks.URL = api.JWKSURL, jwksURL
	case keys != "":
		text, err := p.readInput(keys)
		if err != nil {
			return nil, err
		}
		var set struct {
			Keys []json.RawMessage `json:"keys"`
		}
		if err := json.Unmarshal(text, &set); err != nil || len(set.Keys) == 0 {
			return nil, usagef("%s is not a JSON Web Key Set: an object with one key at least in \"keys\"", keys)
		}
		jwks.Type, jwks.Keys = api.JWKSInline, set.Keys
	}
	if ca != "" {
		text, err := p.readInput(ca)
		if err != nil {
			return nil, err
		}
		pem := string(text)
		jwks.CACertPEM = &pem
	}
	return jwks, nil
}

func (p *Program) printIssuer(out string, i *api.FederationIssuer) error {
	from := map[api.JWKSType]string{api.JWKSDiscovery: "by discovery", api.JWKSURL: i.JWKS.URL, api.JWKSInline: fmt.Sprintf("%d given", len(i.JWKS.Keys))}[i.JWKS.Type]
	if i.JWKS.DiscoveryBase != nil {
		from = "by discovery at " + *i.JWKS.DiscoveryBase
	}
	once := ""
	if i.CheckJTI {
		once = "tokens with an id, once"
	}
	return p.printObject(out, i,
		field{"id", string(i.ID)},
		field{"name", i.Name},
		field{"url", i.IssuerURL},
		field{"keys", from},
		field{"exchanges", once},
		field{"tokens valid for", "at most " + (time.Duration(i.MaxLifetime) * time.Second).String()},
		field{"created", when(i.CreatedAt)},
		field{"archived", whenPtr(i.ArchivedAt)},
	)
}

// -- service accounts --------------------------------------------------------------

func (p *Program) federationAccounts(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "accounts",
		Aliases: []string{"account"},
		Short:   "Say who workloads are here: service accounts",
	}
	create := &cobra.Command{
		Use:     "create",
		Short:   "Create a service account",
		Long:    `Creates a service account. What it may do is said by the rules that lead to it.`,
		Example: `  bailey federation accounts create --name tunnel-setup`,
	}
	var in api.ServiceAccountCreate
	create.Flags().StringVar(&in.Name, "name", "", "a `name` of lower-case letters, digits and hyphens")
	create.Flags().String("description", "", "what the account is for")
	out := outputFlag(create)
	create.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		if in.Name == "" {
			return usageError(create, fmt.Errorf("a service account needs --name"))
		}
		setOptional(create, "description", &in.Description)
		a, err := cl.CreateServiceAccount(ctx, in)
		if err != nil {
			return err
		}
		return p.printServiceAccount(*out, a)
	})
	cmd.AddCommand(create)
	cmd.AddCommand(nounCommands(c, noun[api.ServiceAccount]{
		arg: "ACCOUNT", example: "bailey federation accounts %s svac_…", list: "bailey federation accounts list",
		what: "a service account", many: "service accounts",
		archive: `Ends a service account: its access tokens are not good any more, and its rules give
out none.`,
		header: []string{"ID", "NAME", "DESCRIPTION", "CREATED"},
		row: func(a *api.ServiceAccount) []string {
			return []string{string(a.ID), archivedName(a.Name, a.ArchivedAt != nil), a.Description, when(a.CreatedAt)}
		},
		all: (*client.Client).ServiceAccounts,
		get: func(ctx context.Context, cl *client.Client, id string) (*api.ServiceAccount, error) {
			return cl.GetServiceAccount(ctx, api.ServiceAccountID(id))
		},
		end: func(ctx context.Context, cl *client.Client, id string) (*api.ServiceAccount, error) {
			return cl.ArchiveServiceAccount(ctx, api.ServiceAccountID(id))
		},
		print: p.printServiceAccount,
	})...)
	return cmd
}

func (p *Program) printServiceAccount(out string, a *api.ServiceAccount) error {
	return p.printObject(out, a,
		field{"id", string(a.ID)},
		field{"name", a.Name},
		field{"description", a.Description},
		field{"created", when(a.CreatedAt)},
		field{"archived", whenPtr(a.ArchivedAt)},
	)
}

// -- rules -------------------------------------------------------------------------

func (p *Program) federationRules(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rules",
		Aliases: []string{"rule"},
		Short:   "Say which identities are which service account",
	}
	cmd.AddCommand(p.rulesCreate(c))
	cmd.AddCommand(nounCommands(c, noun[api.FederationRule]{
		arg: "RULE", example: "bailey federation rules %s fdrl_…", list: "bailey federation rules list",
		what: "a rule", many: "rules",
		archive: `Ends a rule: what it has given out is not good any more.`,
		header:  []string{"ID", "NAME", "ISSUER", "SUBJECT", "ACCOUNT", "MAY"},
		row: func(r *api.FederationRule) []string {
			return []string{string(r.ID), archivedName(r.Name, r.ArchivedAt != nil), r.IssuerName, deref(r.Match.SubjectPrefix), deref(r.Target.Name), r.OAuthScope}
		},
		all: (*client.Client).Rules,
		get: func(ctx context.Context, cl *client.Client, id string) (*api.FederationRule, error) {
			return cl.GetRule(ctx, api.RuleID(id))
		},
		end: func(ctx context.Context, cl *client.Client, id string) (*api.FederationRule, error) {
			return cl.ArchiveRule(ctx, api.RuleID(id))
		},
		print: p.printRule,
	})...)
	return cmd
}

func (p *Program) rulesCreate(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a rule",
		Long: `Says which identities of an issuer are a service account, and what they may do:
tunnels is managing tunnels and nothing else, workspace is everything else that an
API key is for, but for making keys and rules. Everything that is given has to fit
an identity: the subject to the letter, or up to a * at its end; the audience as
one of the token's, ` + api.AudienceDefault + ` if none is given; each claim exactly.`,
		Example: `  bailey federation rules create --name tunnel-setup --issuer fdis_… --account svac_… \
    --subject system:serviceaccount:mcp-tunnel:setup --audience api.anthropic.com --scope tunnels
  bailey federation rules create --name deploy --issuer fdis_… --account svac_… \
    --subject 'repo:acme/site:*' --claim ref=refs/heads/main`,
	}
	f := cmd.Flags()
	var in api.FederationRuleCreate
	f.StringVar(&in.Name, "name", "", "a `name` of lower-case letters, digits and hyphens")
	f.String("description", "", "what the rule is for")
	issuer := f.String("issuer", "", "the `id` of the issuer")
	account := f.String("account", "", "the `id` of the service account")
	f.String("subject", "", "what sub has to be, or begin with if it ends in *")
	f.String("audience", "", "what aud has to name")
	claims := f.StringArray("claim", nil, "a `name=value` that the token has to claim; may be repeated")
	scope := f.StringSlice("scope", []string{string(api.ScopeWorkspace)}, "what the access tokens are good for: `workspace|tunnels`, or both with a comma")
	lifetime := timeFlag(cmd, "lifetime", api.TokenLifetimeDefault, "how long the access tokens live at most; from 1m to 24h")
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		if in.Name == "" || *issuer == "" || *account == "" {
			return usageError(cmd, fmt.Errorf("a rule needs --name, --issuer and --account"))
		}
		var scopes []string
		for _, s := range *scope {
			name, ok := map[string]string{string(api.ScopeWorkspace): api.OAuthDeveloper, string(api.ScopeTunnels): api.OAuthManageTunnels}[s]
			if !ok {
				return usageError(cmd, fmt.Errorf("--scope %q is not workspace or tunnels", s))
			}
			scopes = append(scopes, name)
		}
		for _, pair := range *claims {
			name, value, ok := strings.Cut(pair, "=")
			if !ok || name == "" {
				return usageError(cmd, fmt.Errorf("--claim %q is not name=value", pair))
			}
			if in.Match.Claims == nil {
				in.Match.Claims = map[string]string{}
			}
			in.Match.Claims[name] = value
		}
		setOptional(cmd, "description", &in.Description)
		setOptional(cmd, "subject", &in.Match.SubjectPrefix)
		setOptional(cmd, "audience", &in.Match.Audience)
		seconds, ws := int64(*lifetime/time.Second), api.WorkspaceDefault
		in.IssuerID, in.OAuthScope, in.Lifetime, in.WorkspaceID = api.IssuerID(*issuer), strings.Join(scopes, " "), &seconds, &ws
		in.Target = api.FederationTarget{Type: "service_account", ID: api.ServiceAccountID(*account)}
		r, err := cl.CreateRule(ctx, in)
		if err != nil {
			return err
		}
		return p.printRule(*out, r)
	})
	return cmd
}

func (p *Program) printRule(out string, r *api.FederationRule) error {
	audience := api.AudienceDefault
	if r.Match.Audience != nil {
		audience = *r.Match.Audience
	}
	var claims []string
	for _, name := range slices.Sorted(maps.Keys(r.Match.Claims)) {
		claims = append(claims, name+"="+r.Match.Claims[name])
	}
	return p.printObject(out, r,
		field{"id", string(r.ID)},
		field{"name", r.Name},
		field{"description", r.Description},
		field{"issuer", fmt.Sprintf("%s (%s)", r.IssuerName, r.IssuerID)},
		field{"subject", deref(r.Match.SubjectPrefix)},
		field{"audience", audience},
		field{"claims", strings.Join(claims, "\n")},
		field{"service account", fmt.Sprintf("%s (%s)", deref(r.Target.Name), r.Target.ID)},
		field{"may", r.OAuthScope},
		field{"for", "at most " + (time.Duration(r.Lifetime) * time.Second).String()},
		field{"created", when(r.CreatedAt)},
		field{"archived", whenPtr(r.ArchivedAt)},
	)
}

// -- history -----------------------------------------------------------------------

func (p *Program) federationHistory(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "history",
		Short: "Show who exchanged an identity, and why others could not",
		Long: `Shows the newest attempts to exchange an identity, the newest first. A workload is
told nothing of why it was refused; the reason is here. What a token says of itself
is in brackets unless the issuer's signature was found good.`,
		Example: `  bailey federation history --rule fdrl_…`,
	}
	rule := cmd.Flags().String("rule", "", "only of the rule with this `id`")
	l := addListFlags(cmd, false)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		return printList(p, l, cl.Exchanges(ctx, api.RuleID(*rule), l.options()), []string{"WHEN", "RULE", "OUTCOME", "SUBJECT", "REASON"},
			func(e *api.FederationExchange) []string {
				subject := e.Subject
				if !e.Verified && subject != "" {
					subject = "(" + subject + ")"
				}
				why := e.Reason
				if e.Detail != "" {
					why += ": " + e.Detail
				}
				return []string{when(e.CreatedAt), string(e.RuleID), e.Outcome, subject, why}
			})
	})
	return cmd
}
