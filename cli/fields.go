package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/api"
)

// The flags that several nouns share: metadata, money, lifetimes.

const metadataUsage = "a `key=value` pair of metadata; may be repeated"

// metadataOf reads the values of --metadata.
func metadataOf(pairs []string) (api.Metadata, error) {
	m := api.Metadata{}
	for _, pair := range pairs {
		k, v, ok := strings.Cut(pair, "=")
		if !ok || k == "" {
			return nil, usagef("--metadata %q is not key=value", pair)
		}
		m[k] = v
	}
	return m, nil
}

// metadataPatch reads the values of --metadata for an update: an empty value
// removes the key.
func metadataPatch(pairs []string) (api.MetadataPatch, error) {
	m, err := metadataOf(pairs)
	if err != nil || len(m) == 0 {
		return nil, err
	}
	patch := api.MetadataPatch{}
	for k, v := range m {
		if v == "" {
			patch[k] = nil
		} else {
			patch[k] = &v
		}
	}
	return patch, nil
}

func metadataText(m api.Metadata) string {
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, k+"="+m[k])
	}
	return strings.Join(lines, "\n")
}

// budgetOf reads an amount of dollars, such as 5 or 0.50.
func budgetOf(text string) (*api.Budget, error) {
	whole, cents, _ := strings.Cut(strings.TrimPrefix(text, "$"), ".")
	for len(cents) < 2 {
		cents += "0"
	}
	amount := strings.TrimLeft(whole+cents, "0")
	b := &api.Budget{Type: "limit", MaxListCost: api.Money{Amount: amount, Currency: "USD"}}
	if len(cents) > 2 || b.Check() != nil {
		return nil, usagef("--budget %q is not an amount of dollars such as 5 or 0.50", text)
	}
	return b, nil
}

// setString copies a flag into a field of a request if it was given.
func setString(cmd *cobra.Command, flag string, to *string) {
	if f := cmd.Flags().Lookup(flag); f.Changed {
		*to = f.Value.String()
	}
}

// setOptional is setString for a field that may be null.
func setOptional(cmd *cobra.Command, flag string, to **string) {
	if f := cmd.Flags().Lookup(flag); f.Changed {
		v := f.Value.String()
		*to = &v
	}
}

// setPatch is setString for a field of an update; an empty text clears the field.
func setPatch(cmd *cobra.Command, flag string, to *api.Opt[string]) {
	if f := cmd.Flags().Lookup(flag); f.Changed {
		*to = api.Some(f.Value.String())
		to.Null = to.Value == ""
	}
}

// changed reports whether any of the flags was given.
func changed(cmd *cobra.Command, flags ...string) bool {
	return slices.ContainsFunc(flags, cmd.Flags().Changed)
}

// nothingToDo is the error of an update without a change.
func nothingToDo(cmd *cobra.Command) error {
	return usageError(cmd, fmt.Errorf("nothing to change: give a flag or --file"))
}

func expiry(in time.Duration) *time.Time {
	if in == 0 {
		return nil
	}
	t := time.Now().Add(in).UTC().Truncate(time.Second)
	return &t
}
