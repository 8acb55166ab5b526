// Boxes measures our sandbox backends beside other people's, in one run, on one host and
// on one root folder, and prints what it found as tables of medians and ratios. It is
// what `make bench-sandbox` runs; docs/performance.md explains the figures.
//
// The contenders take turns: each round measures every one of them once, so that noise
// on the machine falls on all alike. What is not installed is left out, and said.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/bailey-platform/bailey/cli"
	"github.com/bailey-platform/bailey/sandbox/gvisor"
	"github.com/bailey-platform/bailey/sandbox/launcher"
)

// A contender is one way to run commands in boxes.
type contender struct {
	name string
	ours bool

	// isolation is what stands between a box and the host: ratios are within a kind.
	isolation string

	// run runs `echo hi` in a new box and returns when its output is there. Nil if it
	// cannot.
	run func(context.Context) error

	// open starts a box that stays.
	open func(context.Context) (opened, error)
}

// opened is a box that stays.
type opened interface {
	// call runs `echo hi` in it and returns when its output is there.
	call(context.Context) error
	close()
}

// freezer is an opened box that can be frozen.
type freezer interface {
	freeze(context.Context) error
	thaw(context.Context) error
}

func main() {
	launcher.RunIf()
	gvisor.RunIfRuntime()
	if len(os.Args) > 2 && os.Args[1] == "tool" {
		os.Exit(cli.Main(cli.Program{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Env: os.LookupEnv}))
	}
	if len(os.Args) == 4 && os.Args[1] == "dial" { // in a box
		if err := dialAndPrint(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := bench(); err != nil {
		fmt.Fprintln(os.Stderr, "boxes:", err)
		os.Exit(1)
	}
}

func bench() error {
	root := flag.String("root", "", "the root `folder` of all boxes, with a shell")
	npm := flag.String("npm", "", "a `dir`ectory with node_modules of the contenders from npm")
	runsc := flag.String("runsc", "", "gVisor as it is, a `program`")
	rounds := flag.Int("rounds", 20, "rounds of each measurement")
	many := flag.String("many", "50,200", "how many boxes at once")
	only := flag.String("only", "", "names of contenders, with commas; all if empty")
	parts := flag.String("parts", "start,call,claim,many,egress", "what to measure")
	flag.Parse()
	if *root == "" {
		return fmt.Errorf("-root is needed: a folder made by debootstrap, for one")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	rootDir, err := filepath.Abs(*root)
	if err != nil {
		return err
	}
	// Beside the root folder, as some refuse to work in a system's temporary directory,
	// and where the users of boxes can get to.
	dir, err := os.MkdirTemp(filepath.Dir(rootDir), "bailey-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}

	s := &stage{dir: dir, root: rootDir, npm: *npm, gvisor: *runsc}
	defer s.close()
	all := append(s.ours(ctx), s.theirs(ctx)...)
	if *only != "" {
		names := strings.Split(*only, ",")
		all = slices.DeleteFunc(all, func(c contender) bool { return !slices.Contains(names, c.name) })
	}
	fmt.Printf("%d CPUs, %s, root folder %s\n", runtime.NumCPU(), kernel(), rootDir)
	for _, why := range s.missing {
		fmt.Println("left out:", why)
	}
	for _, part := range strings.Split(*parts, ",") {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		fmt.Println()
		switch part {
		case "start":
			serial(ctx, "Cold start: from nothing to the output of a first `echo`", all, *rounds, start)
		case "call":
			serial(ctx, "Tool call: `sh -c 'echo hi'` in a box that runs", all, *rounds*5, calls())
		case "claim":
			serial(ctx, "Warm claim: a box that was frozen runs `echo`", all, *rounds, claims())
		case "many":
			for _, n := range strings.Split(*many, ",") {
				count, err := strconv.Atoi(n)
				if err != nil {
					return err
				}
				together(ctx, all, count)
			}
		case "egress":
			if err := s.egress(ctx, *rounds); err != nil {
				fmt.Println("egress:", err)
			}
		default:
			return fmt.Errorf("there is no part %q", part)
		}
	}
	return nil
}

// start measures a cold start.
func start(ctx context.Context, c contender) (time.Duration, bool, error) {
	if c.run == nil {
		return 0, false, nil
	}
	began := time.Now()
	err := c.run(ctx)
	return time.Since(began), true, err
}

// calls measures calls in a box that each contender keeps.
func calls() func(context.Context, contender) (time.Duration, bool, error) {
	boxes := make(map[string]opened)
	return func(ctx context.Context, c contender) (time.Duration, bool, error) {
		if c.name == "" { // the end
			for _, b := range boxes {
				b.close()
			}
			return 0, false, nil
		}
		if c.open == nil {
			// One whose every command is a new box: that is its call.
			return start(ctx, c)
		}
		b, ok := boxes[c.name]
		if !ok {
			var err error
			if b, err = c.open(ctx); err != nil {
				return 0, false, err
			}
			boxes[c.name] = b
			if err := b.call(ctx); err != nil { // the first one warms up
				return 0, false, err
			}
		}
		began := time.Now()
		err := b.call(ctx)
		return time.Since(began), true, err
	}
}

// claims measures thawing and a call.
func claims() func(context.Context, contender) (time.Duration, bool, error) {
	boxes := make(map[string]opened)
	return func(ctx context.Context, c contender) (time.Duration, bool, error) {
		if c.name == "" {
			for _, b := range boxes {
				b.close()
			}
			return 0, false, nil
		}
		if c.open == nil {
			return 0, false, nil
		}
		b, ok := boxes[c.name]
		if !ok {
			var err error
			if b, err = c.open(ctx); err != nil {
				return 0, false, err
			}
			boxes[c.name] = b
			if err := b.call(ctx); err != nil {
				return 0, false, err
			}
		}
		f, ok := b.(freezer)
		if !ok {
			return 0, false, nil
		}
		if err := f.freeze(ctx); err != nil {
			return 0, false, err
		}
		began := time.Now()
		if err := f.thaw(ctx); err != nil {
			return 0, false, err
		}
		err := b.call(ctx)
		return time.Since(began), true, err
	}
}

// serial measures all contenders in turns and prints the medians.
func serial(ctx context.Context, title string, all []contender, rounds int, measure func(context.Context, contender) (time.Duration, bool, error)) {
	times := make(map[string][]time.Duration)
	failed := make(map[string]error)
	for range rounds {
		for _, c := range all {
			if failed[c.name] != nil || ctx.Err() != nil {
				continue
			}
			// The slow ones have fewer turns, as they would take most of the time.
			if got := times[c.name]; len(got) >= 8 && median(got) > 300*time.Millisecond {
				continue
			}
			took, ok, err := measure(ctx, c)
			if err != nil {
				failed[c.name] = err
			} else if ok {
				times[c.name] = append(times[c.name], took)
			}
		}
	}
	_, _, _ = measure(ctx, contender{})
	fmt.Println(title)
	printTimes(all, times, failed)
}

func printTimes(all []contender, times map[string][]time.Duration, failed map[string]error) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "contender\tisolation\tmedian ms\tp95 ms\tto the best of ours of its kind")
	best := make(map[string]time.Duration)
	for _, c := range all {
		if t := times[c.name]; c.ours && len(t) > 0 && (best[c.isolation] == 0 || median(t) < best[c.isolation]) {
			best[c.isolation] = median(t)
		}
	}
	for _, c := range all {
		if err := failed[c.name]; err != nil {
			fmt.Fprintf(w, "%s\t%s\tfailed: %.100s\n", c.name, c.isolation, strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		t := times[c.name]
		if len(t) == 0 {
			continue
		}
		ratio := ""
		if b := best[c.isolation]; b > 0 {
			ratio = fmt.Sprintf("%.1f×", float64(median(t))/float64(b))
		}
		fmt.Fprintf(w, "%s\t%s\t%.2f\t%.2f\t%s\n", c.name, c.isolation, ms(median(t)), ms(percentile(t, 95)), ratio)
	}
	w.Flush()
}

// together starts n boxes of each contender at once and keeps them, then has each run a
// command, and sees how much memory the host has left meanwhile.
func together(ctx context.Context, all []contender, n int) {
	fmt.Printf("%d boxes at once\n", n)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "contender\tisolation\tall run after s\tMiB of the host's memory each")
	for _, c := range all {
		if c.open == nil || ctx.Err() != nil {
			continue
		}
		runtime.GC()
		before := available()
		began := time.Now()
		boxes := make([]opened, n)
		errs := make([]error, n)
		var each sync.WaitGroup
		for i := range n {
			each.Go(func() {
				if boxes[i], errs[i] = c.open(ctx); errs[i] == nil {
					errs[i] = boxes[i].call(ctx)
				}
			})
		}
		each.Wait()
		took := time.Since(began)
		used := before - available()
		for _, b := range boxes {
			if b != nil {
				each.Go(b.close)
			}
		}
		each.Wait()
		if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
			fmt.Fprintf(w, "%s\t%s\tfailed: %.120s\n", c.name, c.isolation, strings.ReplaceAll(errs[i].Error(), "\n", " "))
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%.2f\t%.1f\n", c.name, c.isolation, took.Seconds(), float64(used)/float64(n)/(1<<20))
	}
	w.Flush()
	fmt.Println()
}

// available is how many bytes of memory the host could give out.
func available() int64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "MemAvailable:" {
			kib, _ := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10
		}
	}
	return 0
}

func kernel() string {
	data, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return "Linux " + strings.TrimSpace(string(data))
}

func median(t []time.Duration) time.Duration { return percentile(t, 50) }

func percentile(t []time.Duration, p int) time.Duration {
	sorted := slices.SortedFunc(slices.Values(t), cmp.Compare[time.Duration])
	return sorted[(len(sorted)-1)*p/100]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
