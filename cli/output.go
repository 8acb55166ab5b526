package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// The values of --output.
const (
	outTable = "table"
	outJSON  = "json"
)

// outputFlag adds -o to a command and returns where its value will be.
func outputFlag(cmd *cobra.Command) *string {
	format := cmd.Flags().StringP("output", "o", outTable, "how to print: `table|json`")
	must(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{outTable, outJSON}, cobra.ShellCompDirectiveNoFileComp)))
	check := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if *format != outTable && *format != outJSON {
			return usageError(cmd, fmt.Errorf("output %q is not table or json", *format))
		}
		if check != nil {
			return check(cmd, args)
		}
		return nil
	}
	return format
}

// printJSON prints v as the API would, indented.
func printJSON(w io.Writer, v any) error {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(cleanJSON(out.Bytes()))
	return err
}

// A field is one line of an object's table.
type field struct{ name, value string }

// printFields prints an object for a person, leaving empty values out.
func (p *Program) printFields(fields ...field) error {
	s := p.styleOf(p.Stdout)
	width := 0
	for _, f := range fields {
		width = max(width, len(f.name))
	}
	for _, f := range fields {
		if f.value == "" {
			continue
		}
		lines := strings.Split(strings.TrimRight(clean(f.value), "\n"), "\n")
		if _, err := fmt.Fprintf(p.Stdout, "%s%s\n", s.dim(fmt.Sprintf("%-*s", width+2, f.name)), lines[0]); err != nil {
			return err
		}
		for _, l := range lines[1:] {
			if _, err := fmt.Fprintf(p.Stdout, "%*s%s\n", width+2, "", l); err != nil {
				return err
			}
		}
	}
	return nil
}

// printRows prints a list: a header and a row each, aligned. Cells are cleaned. On a
// terminal texts are kept to a sensible width; what is one word may be an id, which is to
// be copied whole.
func (p *Program) printRows(header []string, rows [][]string) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(p.Stderr, "none")
		return err
	}
	var text strings.Builder
	tw := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(header, "\t"))
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, c := range row {
			width := 1000
			if isTerminal(p.Stdout) && strings.ContainsRune(c, ' ') {
				width = 60
			}
			cells[i] = oneLine(c, width)
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	tw.Flush()
	// Coloured afterwards, as colours have no width.
	s := p.styleOf(p.Stdout)
	for i, l := range strings.Split(strings.TrimRight(text.String(), "\n"), "\n") {
		l = strings.TrimRight(l, " ")
		if i == 0 {
			l = s.dim(l)
		}
		if _, err := fmt.Fprintln(p.Stdout, l); err != nil {
			return err
		}
	}
	return nil
}

// when prints a time in the local zone, to the second.
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

func whenPtr(t *time.Time) string {
	if t == nil {
		return ""
	}
	return when(*t)
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// must panics on an error that only a mistake in this package can cause.
func must(err error) {
	if err != nil {
		panic("cli: " + err.Error())
	}
}
