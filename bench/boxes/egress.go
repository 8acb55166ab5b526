package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/netjail"
)

// egress measures connections out of boxes, under a policy, beside the same connections
// made on the host.
func (s *stage) egress(ctx context.Context, rounds int) error {
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer far.Close()
	go source(far)
	port := uint16(far.Addr().(*net.TCPAddr).Port)

	prober, err := os.Executable()
	if err != nil {
		return err
	}
	fmt.Println("Egress: a connection with its first byte, and one stream, under a policy")
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "path\tconnection by name, median ms\tby address\tGB/s\tof direct")
	direct, err := dial(far.Addr().String(), rounds)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "host, direct\t–\t%.3f\t%.2f\t1\n", direct.AddressMS, direct.GBps)
	for _, b := range s.backends {
		jail, err := netjail.New(netjail.Options{
			Box: "bench",
			Policy: egress.Policy{Rules: []egress.Rule{
				{Name: "far", Hosts: []string{"far.test"}, Ports: []egress.Ports{egress.Port(port)}, Protocol: egress.TCP},
				{Name: "loopback", CIDRs: []string{"127.0.0.1"}, Ports: []egress.Ports{egress.Port(port)}, Protocol: egress.TCP},
			}},
			Record: func(netjail.Decision) error { return nil },
			Dialer: &egress.Dialer{Resolver: fixed{}},
		})
		if err != nil {
			return err
		}
		dir, err := os.MkdirTemp(s.dir, "net-")
		if err != nil {
			return err
		}
		files, err := jail.Files(dir, nil)
		if err != nil {
			return err
		}
		files["/bench"] = prober
		box, err := b.backend.start(ctx, jail, files)
		if err != nil {
			jail.Close()
			fmt.Fprintf(w, "%s\tfailed: %.100s\n", b.name, strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		out, err := box.bash(ctx, fmt.Sprintf("/bench dial far.test:%d %d", port, rounds))
		box.close()
		jail.Close()
		var seen dialed
		if err == nil {
			err = decodeDialed(out, &seen)
		}
		if err != nil {
			fmt.Fprintf(w, "%s\tfailed: %.150s\n", b.name, strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Fprintf(w, "%s\t%.3f\t%.3f\t%.2f\t%.2f\n", b.name, seen.NameMS, seen.AddressMS, seen.GBps, seen.GBps/direct.GBps)
	}
	return w.Flush()
}

// decodeDialed finds what the program in the box printed in a tool's result.
func decodeDialed(content string, into *dialed) error {
	var blocks []struct{ Text string }
	if err := json.Unmarshal([]byte(content), &blocks); err != nil || len(blocks) == 0 {
		return fmt.Errorf("the box said %.100q", content)
	}
	text := blocks[0].Text
	i, j := strings.Index(text, "{"), strings.LastIndex(text, "}")
	if i < 0 || j < i {
		return fmt.Errorf("the box said %.100q", text)
	}
	return json.Unmarshal([]byte(text[i:j+1]), into)
}

// fixed resolves every name to this host.
type fixed struct{}

func (fixed) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

// streamBytes is what one connection brings when it is asked for all.
const streamBytes = 512 << 20

// source answers 1 with a byte, and 2 with a stream.
func source(l net.Listener) {
	block := make([]byte, 1<<20)
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			ask := make([]byte, 1)
			if _, err := io.ReadFull(conn, ask); err != nil {
				return
			}
			if ask[0] == 1 {
				_, _ = conn.Write(block[:1])
				return
			}
			for sent := 0; sent < streamBytes; sent += len(block) {
				if _, err := conn.Write(block); err != nil {
					return
				}
			}
		}()
	}
}

// dialed is what connections came to.
type dialed struct {
	NameMS    float64 // with the name looked up each time, which takes two questions
	AddressMS float64 // at the address that it was found to have
	GBps      float64
}

// dial makes connections to address, one byte each, and then one that carries a stream.
func dial(address string, rounds int) (dialed, error) {
	rounds = max(rounds, 5)
	byName, at, err := connections(address, rounds)
	if err != nil {
		return dialed{}, err
	}
	byAddress, _, err := connections(at, rounds)
	if err != nil {
		return dialed{}, err
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return dialed{}, err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{2}); err != nil {
		return dialed{}, err
	}
	began := time.Now()
	buf, n := make([]byte, 256<<10), 0
	for {
		m, err := conn.Read(buf)
		n += m
		if err == io.EOF {
			break
		}
		if err != nil {
			return dialed{}, err
		}
	}
	return dialed{ms(median(byName)), ms(median(byAddress)), float64(n) / time.Since(began).Seconds() / 1e9}, nil
}

// connections says how long each of some took, with its first byte, and where they led.
func connections(address string, rounds int) (times []time.Duration, at string, err error) {
	for range rounds {
		began := time.Now()
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return nil, "", err
		}
		_, _ = conn.Write([]byte{1})
		_, err = io.ReadFull(conn, make([]byte, 1))
		at = conn.RemoteAddr().String()
		conn.Close()
		if err != nil {
			return nil, "", err
		}
		times = append(times, time.Since(began))
	}
	return times, at, nil
}

func dialAndPrint(address, rounds string) error {
	n, err := strconv.Atoi(rounds)
	if err != nil {
		return err
	}
	seen, err := dial(address, n)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(seen)
}
