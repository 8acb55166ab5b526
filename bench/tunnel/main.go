// Tunnel measures our tunnel beside the same HTTP server reached directly and by other
// means, in one run on one host, and prints what it found as tables of medians and
// ratios. It is what `make bench-tunnel` runs; docs/performance.md explains the figures.
//
// Every part is a process of its own, as it would be: the server, the edge, the gateway,
// and this one with the load and the plane's dialer in it. The contenders take turns, so
// that noise on the machine falls on all alike. What is not installed is left out, and
// said.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A contender is one way to reach the server.
type contender struct {
	name   string
	url    string // of the server, by this way
	client http.RoundTripper
	forget func() // closes the connections that are pooled
}

func main() {
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "role-") {
		if err := play(os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
			os.Exit(1)
		}
		return
	}
	if err := bench(); err != nil {
		fmt.Fprintln(os.Stderr, "tunnel:", err)
		os.Exit(1)
	}
}

func bench() error {
	rounds := flag.Int("rounds", 5, "rounds of each measurement")
	took := flag.Duration("for", 2*time.Second, "how long each takes in a round")
	only := flag.String("only", "", "names of contenders, with commas; all if empty")
	parts := flag.String("parts", "latency,requests,one,eight,setup,idle", "what to measure")
	idle := flag.Int("idle", 10_000, "idle tunnels")
	profile := flag.String("profile", "", "write CPU profiles of all our processes to this `folder`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	if *profile != "" {
		if err := os.MkdirAll(*profile, 0o755); err != nil {
			return err
		}
	}
	s, err := newStage(ctx, *profile)
	if err != nil {
		return err
	}
	defer s.close()
	var names []string
	if *only != "" {
		names = strings.Split(*only, ",")
	}
	all, err := s.contenders(names)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("-only %s: there is none of these names", *only)
	}
	fmt.Printf("%d CPUs, %s\n", runtime.NumCPU(), runtime.Version())
	for _, why := range s.missing {
		fmt.Println("left out:", why)
	}
	for _, part := range strings.Split(*parts, ",") {
		fmt.Println()
		s.profile(part, time.Duration(*rounds*len(all))*(*took))
		switch part {
		case "latency":
			err = table(ctx, "One client, a small answer: median time of a request", all, *rounds, func(c contender) ([]float64, error) {
				p50, _, err := requests(ctx, c, 1, *took)
				return []float64{p50}, err
			}, column{"µs", 1e6, false})
		case "requests":
			err = table(ctx, "64 clients, a small answer", all, *rounds, func(c contender) ([]float64, error) {
				return load(ctx, c, 64, *took)
			}, column{"requests/s", 1, true}, column{"p99, ms", 1e3, false}, column{"CPU µs", 1e6, false})
		case "one":
			err = table(ctx, "One stream", all, *rounds, func(c contender) ([]float64, error) {
				return stream(ctx, c, 1, *took)
			}, column{"MB/s", 1e-6, true}, column{"CPU ns/B", 1e9, false})
		case "eight":
			err = table(ctx, "Eight streams", all, *rounds, func(c contender) ([]float64, error) {
				return stream(ctx, c, 8, *took)
			}, column{"MB/s", 1e-6, true}, column{"CPU ns/B", 1e9, false})
		case "setup":
			err = table(ctx, "A request on a connection of its own: median time", all, *rounds, func(c contender) ([]float64, error) {
				p50, err := setups(ctx, c, *took)
				return []float64{p50}, err
			}, column{"µs", 1e6, false})
		case "idle":
			err = s.idle(ctx, *idle)
		default:
			err = fmt.Errorf("part %q: there is none of this name", part)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// A column is one figure of a table.
type column struct {
	unit   string
	factor float64
	more   bool // is better
}

// table has the contenders take turns and prints the medians. Ratios are to the first
// of them, and above 1 where a contender is faster.
func table(ctx context.Context, title string, all []contender, rounds int, measure func(contender) ([]float64, error), columns ...column) error {
	results := make([][][]float64, len(all)) // contender, column, round
	for i := range results {
		results[i] = make([][]float64, len(columns))
	}
	for range rounds {
		for i, c := range all {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			r, err := measure(c)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			for j, v := range r {
				results[i][j] = append(results[i][j], v)
			}
		}
	}
	fmt.Println(title)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, c := range columns {
		fmt.Fprintf(w, "\t%s\tratio", c.unit)
	}
	fmt.Fprint(w, "\t\t\n")
	for i, c := range all {
		for j, col := range columns {
			value, base := median(results[i][j]), median(results[0][j])
			ratio := value / base
			if !col.more {
				ratio = base / value
			}
			fmt.Fprintf(w, "\t%.5g\t%.2f", value*col.factor, ratio)
		}
		fmt.Fprintf(w, "\t\t%s\n", c.name)
	}
	return w.Flush()
}

func median[T cmp.Ordered](all []T) T {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}
