package netjail

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bailey-platform/bailey/egress"
)

const (
	dnsPort    = 53
	dnsTTL     = 60   // seconds; the address does not change, but a box may lose a name
	dnsSizeMax = 4096 // bytes of a question; it holds one name
	dnsUDPSize = 1232 // what we say we take by UDP

	dnsIdle         = 10 * time.Second // between two questions on one TCP connection
	dnsQuestionsMax = 1000             // on one TCP connection
)

// answerAll serves the name server by UDP. Questions are answered one after another:
// there is nothing to wait for.
func (j *Jail) answerAll(conn *net.UDPConn) error {
	buf := make([]byte, dnsSizeMax)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			if !j.pause(err) {
				return err
			}
			continue
		}
		if answer := j.answer(buf[:n]); answer != nil {
			_, _ = conn.WriteToUDPAddrPort(answer, from) // like a packet that is lost
		}
	}
}

// answerStream serves the name server on a TCP connection, to whichever address it is.
func (j *Jail) answerStream(conn net.Conn) {
	buf := make([]byte, dnsSizeMax)
	for range dnsQuestionsMax {
		if conn.SetDeadline(time.Now().Add(dnsIdle)) != nil {
			return
		}
		if _, err := io.ReadFull(conn, buf[:2]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(buf))
		if n > len(buf) {
			return
		}
		if _, err := io.ReadFull(conn, buf[:n]); err != nil {
			return
		}
		answer := j.answer(buf[:n])
		if answer == nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// answer is the answer to a question, or nil if it gets none. Nobody is asked: a name
// that is allowed has its address from us, and one that is not goes nowhere but into the
// record.
func (j *Jail) answer(message []byte) []byte {
	if !j.queries.Allow() {
		j.limit("dns queries", "the box asks its name server too often; some questions get no answer")
		return nil
	}
	j.counters.queries.Add(1)
	var p dnsmessage.Parser
	header, err := p.Start(message)
	if err != nil || header.Response {
		return nil
	}
	reply := dnsmessage.Header{
		ID: header.ID, Response: true, OpCode: header.OpCode,
		RecursionDesired: header.RecursionDesired, RecursionAvailable: true,
	}
	questions, err := p.AllQuestions()
	switch {
	case header.OpCode != 0:
		reply.RCode = dnsmessage.RCodeNotImplemented
		return pack(reply, nil, nil, false)
	case err != nil || len(questions) != 1:
		reply.RCode = dnsmessage.RCodeFormatError
		return pack(reply, nil, nil, false)
	}
	edns := hasEDNS(&p)
	question := questions[0]
	address, rcode := j.resolve(question)
	reply.RCode = rcode
	return pack(reply, &question, address, edns)
}

// hasEDNS reports whether the question speaks of extensions (RFC 6891), so that the
// answer must.
func hasEDNS(p *dnsmessage.Parser) bool {
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return false
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return false
		}
		if h.Type == dnsmessage.TypeOPT {
			return true
		}
		if p.SkipAdditional() != nil {
			return false
		}
	}
}

func pack(header dnsmessage.Header, question *dnsmessage.Question, address *[4]byte, edns bool) []byte {
	b := dnsmessage.NewBuilder(nil, header)
	b.EnableCompression()
	var errs [5]error
	if question != nil {
		errs[0] = b.StartQuestions()
		errs[1] = b.Question(*question)
	}
	if address != nil {
		errs[2] = b.StartAnswers()
		errs[3] = b.AResource(dnsmessage.ResourceHeader{Name: question.Name, Class: question.Class, TTL: dnsTTL}, dnsmessage.AResource{A: *address})
	}
	if edns {
		var h dnsmessage.ResourceHeader
		errs[4] = errors.Join(b.StartAdditionals(), h.SetEDNS0(dnsUDPSize, dnsmessage.RCodeSuccess, false), b.OPTResource(h, dnsmessage.OPTResource{}))
	}
	answer, err := b.Finish()
	if errors.Join(append(errs[:], err)...) != nil {
		return nil
	}
	return answer
}

// resolve decides about one question. Only A records exist here: without AAAA nobody
// tries what the jail would not serve, and without HTTPS and SVCB nobody learns keys for
// an encrypted greeting.
func (j *Jail) resolve(q dnsmessage.Question) (address *[4]byte, rcode dnsmessage.RCode) {
	asked := strings.TrimSuffix(q.Name.String(), ".") // as names are written everywhere else
	host, err := egress.ParseHost(asked)
	rules := j.state.Load().rules
	var verdict egress.Verdict
	switch {
	case q.Class != dnsmessage.ClassINET:
		verdict.Reason = asked + " was asked for in a class that has no hosts"
	case err != nil:
		verdict.Reason = err.Error()
	default:
		verdict = rules.Resolve(host)
	}
	if !verdict.Allow {
		// Programs ask for the name of an address to show it, and do without.
		quiet := q.Type == dnsmessage.TypePTR || strings.HasSuffix(host.Name(), ".arpa")
		j.refuseName(asked, verdict, quiet)
		return nil, dnsmessage.RCodeRefused
	}
	if q.Type != dnsmessage.TypeA {
		return nil, dnsmessage.RCodeSuccess
	}
	if j.firstTime(asked) {
		d := j.decision(ActionDNS)
		d.Allow, d.Rule, d.Host, d.Protocol = true, verdict.Rule, host.String(), "dns"
		if err := j.note(d); err != nil {
			j.forget(asked)
			return nil, dnsmessage.RCodeServerFailure
		}
	}
	addr, ok := j.names.address(host)
	if !ok {
		j.limit("names", "the box has asked for as many names as it may; it can go on with those it has")
		return nil, dnsmessage.RCodeRefused
	}
	quad := addr.As4()
	return &quad, dnsmessage.RCodeSuccess
}

func (j *Jail) refuseName(asked string, verdict egress.Verdict, quiet bool) {
	if !j.firstTime(asked) {
		j.counters.denied.Add(1)
		return
	}
	d := j.decision(ActionDNS)
	d.Rule, d.Reason, d.Host, d.Protocol = verdict.Rule, verdict.Reason, asked, "dns"
	if quiet {
		j.counters.denied.Add(1)
		_ = j.note(d) // it is refused either way
		return
	}
	j.refuse(d)
}

// answeredMax bounds the names whose verdict is known to be on record. Beyond it they are
// recorded anew.
const answeredMax = 8192

// firstTime reports whether a name's verdict is not on this call's record yet, and takes
// it that it will be: getaddrinfo alone asks twice for each name.
func (j *Jail) firstTime(name string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.answered[name] {
		return false
	}
	if len(j.answered) >= answeredMax {
		clear(j.answered)
	}
	j.answered[name] = true
	return true
}

func (j *Jail) forget(name string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.answered, name)
}
