package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/settings"
	"github.com/bailey-platform/bailey/tunnel/gateway"
)

// The edges that a gateway has learned of are kept in its data directory. Where an edge
// is, and above all who signs for it, changes in the years of a gateway, while its
// settings are as init has left them: a gateway that was told of the next CA by an edge
// that it trusted still knows it when it is started again.

// learnedFile is where they are.
func learnedFile(c *gateway.Config) string { return filepath.Join(c.Data, "edges.json") }

// learnedEdges are what is in the file.
type learnedEdges struct {
	Domain string            `json:"domain"` // of the tunnel whose they are
	Edges  []api.EdgeAddress `json:"edges"`
}

// readLearned returns what was learned; nothing if that was of another tunnel.
func readLearned(c *gateway.Config) ([]api.EdgeAddress, error) {
	text, err := settings.ReadFile(learnedFile(c))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var l learnedEdges
	if err := json.Unmarshal(text, &l); err != nil {
		return nil, fmt.Errorf("%s: %w (it can be deleted: the edges are learned again)", learnedFile(c), err)
	}
	if l.Domain != c.Tunnel.Domain {
		return nil, nil
	}
	return l.Edges, nil
}

// keepLearned returns what writes down the edges that a connector learns of.
func keepLearned(c *gateway.Config, log *slog.Logger) func([]api.EdgeAddress) {
	var mu sync.Mutex
	var last string
	return func(edges []api.EdgeAddress) {
		text, err := json.Marshal(learnedEdges{c.Tunnel.Domain, edges})
		mu.Lock()
		defer mu.Unlock()
		if err != nil || string(text) == last {
			return
		}
		err = errors.Join(os.MkdirAll(c.Data, 0o700), gateway.WriteSecret(learnedFile(c), text))
		if err != nil {
			log.Warn("the edges that this gateway has learned of cannot be kept", "error", err)
			return
		}
		last = string(text)
	}
}

// withLearned joins the edges of the settings with those learned. One that is in both
// goes by what was learned, and is trusted by either: an edge may have been told of a CA
// that does not sign yet, and the settings may be newer than what was learned.
func withLearned(configured, learned []api.EdgeAddress) []api.EdgeAddress {
	all := slices.Clone(learned)
	for _, c := range configured {
		i := slices.IndexFunc(all, func(l api.EdgeAddress) bool {
			return slices.ContainsFunc(l.Addresses, func(addr string) bool { return slices.Contains(c.Addresses, addr) })
		})
		switch {
		case i < 0:
			all = append(all, c)
		case all[i].CAs != "" && c.CAs != "" && all[i].CAs != c.CAs:
			all[i].CAs += "\n" + c.CAs
		}
	}
	return all
}
