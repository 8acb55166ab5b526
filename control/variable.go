package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/store"
)

// Credentials of the type environment_variable are for the boxes of sessions, and never
// in them: a worker gives the box a placeholder, and asks here for the value when a
// request that may carry it is about to leave. Official workers do not ask, and their
// boxes do without.

// variablesMax bounds the variables of one session; what more its vaults have is left
// out, those of the last vaults first.
const variablesMax = 64

// SessionVariables tells the worker that has a work item which variables the box of its
// session is to have. Where two vaults have the same, the first one's is it.
//
// The session is told, once, of hosts that such a credential is for and that the network
// rules of its environment do not permit.
func (c *Control) SessionVariables(ctx context.Context, p Principal, env api.EnvironmentID, work api.WorkID) (*api.SessionVariables, error) {
	session, err := c.servedBy(ctx, p, env, work)
	if err != nil {
		return nil, err
	}
	out := &api.SessionVariables{Data: []api.SessionVariable{}}
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		out.Data, err = sessionVariables(tx, session)
		return err
	})
	if err != nil || len(out.Data) == 0 {
		return out, err
	}
	return out, c.warnUnreachable(ctx, session, out.Data)
}

func sessionVariables(tx *store.Tx, session api.SessionID) ([]api.SessionVariable, error) {
	out := []api.SessionVariable{}
	s, err := tx.Session(session)
	if err != nil {
		return out, found(err, "session", string(session))
	}
	named := map[string]bool{}
	for _, vault := range s.VaultIDs {
		creds, err := tx.LiveCredentials(vault, api.AuthEnvironmentVariable)
		if err != nil {
			return out, err
		}
		for _, cred := range creds {
			if named[cred.Auth.SecretName] || len(out) == variablesMax {
				continue
			}
			named[cred.Auth.SecretName] = true
			out = append(out, api.SessionVariable{
				CredentialID: cred.ID, VaultID: vault, Name: cred.Auth.SecretName,
				Networking: *cred.Auth.Networking, InjectionLocation: cred.Auth.InjectionLocation,
			})
		}
	}
	return out, nil
}

// VariableValue hands the value of a variable to the worker that has the session's work
// item. It is on record first.
func (c *Control) VariableValue(ctx context.Context, p Principal, env api.EnvironmentID, work api.WorkID, id api.CredentialID) (*api.VariableValue, error) {
	session, err := c.servedBy(ctx, p, env, work)
	if err != nil {
		return nil, err
	}
	var v api.SessionVariable
	var sealed *store.Secret
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		all, err := sessionVariables(tx, session)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all, func(v api.SessionVariable) bool { return v.CredentialID == id })
		if i < 0 {
			return api.NotFound("session %s has no variable of credential %s", session, id)
		}
		v = all[i]
		sealed, err = tx.Secret(string(id), api.FieldSecretValue)
		return found(err, "credential", string(id))
	})
	if err != nil {
		return nil, err
	}
	secrets, err := c.unseal(ctx, []*store.Secret{sealed})
	if err != nil {
		return nil, err
	}
	err = c.announce(audit.Record{
		Action: audit.CredentialHandOut, Actor: p.Actor(), Environment: string(env), Session: string(session),
		Attrs: map[string]string{"credential": string(id), "vault": string(v.VaultID), "work_id": string(work), "variable": v.Name},
	})
	if err != nil {
		return nil, fmt.Errorf("the audit record cannot be written: %w", err)
	}
	return &api.VariableValue{Type: "variable_value", Value: secrets[api.FieldSecretValue]}, nil
}

// warnUnreachable tells a session of a cloud environment of the hosts that its variables
// are for and its boxes cannot reach. What other environments permit is known to their
// workers alone.
func (c *Control) warnUnreachable(ctx context.Context, session api.SessionID, all []api.SessionVariable) error {
	hosts := map[api.CredentialID][]string{}
	var env api.EnvironmentID
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		s, err := tx.Session(session)
		if err != nil {
			return found(err, "session", string(session))
		}
		env = s.EnvironmentID
		e, err := tx.Environment(env)
		if err != nil || e.Config.Networking == nil {
			return err
		}
		for _, v := range all {
			closed := unreachable(v.Networking, e.Config.Networking)
			if len(closed) == 0 {
				continue
			}
			told, err := tx.ToldOf(session, v.CredentialID)
			if err != nil {
				return err
			}
			if !told {
				hosts[v.CredentialID] = closed
			}
		}
		return nil
	})
	if err != nil || len(hosts) == 0 {
		return err
	}
	err = c.write(ctx, func(tx *store.Tx) error {
		s, err := tx.LockSession(session)
		if err != nil || s.Status == api.StatusTerminated {
			return err
		}
		var warn []api.Draft
		for _, v := range all {
			told, err := tx.ToldOf(session, v.CredentialID)
			if err != nil {
				return err
			}
			if len(hosts[v.CredentialID]) == 0 || told {
				continue
			}
			warn = append(warn, api.Draft{Body: &api.SessionError{Error: api.TurnError{
				Type: api.ErrorCredentialHost, CredentialID: v.CredentialID, VaultID: v.VaultID, RetryStatus: api.RetryStatus{Type: api.RetryRetrying},
				Message: fmt.Sprintf("The credential for the variable %s is for %s, which the network rules of environment %s do not permit. Add it to the environment's allowed_hosts, or leave it out of the credential.",
					v.Name, strings.Join(hosts[v.CredentialID], ", "), env),
			}}})
		}
		if _, err := c.append(tx, s, warn); err != nil {
			return err
		}
		return tx.UpdateSession(s)
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil // it was deleted meanwhile
	}
	return err
}

// unreachable are the hosts of a credential of which an environment permits nothing.
func unreachable(cred api.CredentialNetworking, env *api.Networking) (hosts []string) {
	if cred.Type != api.NetworkLimited || env.Type != api.NetworkLimited || env.AllowPackageManagers {
		return nil // the hosts of package managers are many
	}
	for _, host := range cred.AllowedHosts {
		if !slices.ContainsFunc(env.AllowedHosts, func(allowed string) bool { return meet(host, allowed) }) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// meet reports whether two patterns have a name in common: host names, or "*." before
// one for all names below it.
func meet(a, b string) bool {
	a, b = strings.ToLower(a), strings.ToLower(b)
	if a == b {
		return true
	}
	// The dot stays: "*.x" is for names that end in ".x".
	below, isA := strings.CutPrefix(a, "*")
	under, isB := strings.CutPrefix(b, "*")
	switch {
	case isA && isB:
		return strings.HasSuffix(below, under) || strings.HasSuffix(under, below)
	case isA:
		return strings.HasSuffix(b, below)
	case isB:
		return strings.HasSuffix(a, under)
	}
	return false
}
