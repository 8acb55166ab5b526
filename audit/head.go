package audit

import (
	"bytes"
	"crypto/hmac"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
)

// A head names the last line of a log. The head file holds two slots, written
// in turn, so that a crash while one is written leaves the other.
type head struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
	MAC  string `json:"mac"`
}

const headSlot = 256 // bytes of a slot, padded with blanks, ending in a newline

func (h head) mac(k Key) string {
	return hex.EncodeToString(k.mac("head", fmt.Appendf(nil, "%d %s", h.Seq, h.Hash)))
}

// slot returns h signed and padded, and where in the file it belongs.
func (h head) slot(k Key) (b []byte, offset int64) {
	h.MAC = h.mac(k)
	b, _ = json.Marshal(h) // a uint64 and two strings: cannot fail
	b = append(b, bytes.Repeat([]byte(" "), headSlot-1-len(b))...)
	return append(b, '\n'), int64(h.Seq%2) * headSlot
}

// parseHead returns the newest slot of a head file that its key signed.
func parseHead(b []byte, k Key) (newest head, ok bool) {
	for n := 0; n < 2 && len(b) >= (n+1)*headSlot; n++ {
		var h head
		if json.Unmarshal(b[n*headSlot:(n+1)*headSlot], &h) != nil {
			continue
		}
		if !hmac.Equal([]byte(h.MAC), []byte(h.mac(k))) {
			continue
		}
		if !ok || h.Seq > newest.Seq {
			newest, ok = h, true
		}
	}
	return newest, ok
}

// createHead makes the head file of an empty log.
func createHead(path string, k Key) error {
	return replaceHead(path, head{Seq: 0, Hash: zeroHash}, k)
}

// replaceHead makes a head file that has h alone.
func replaceHead(path string, h head, k Key) error {
	file := bytes.Repeat(append(bytes.Repeat([]byte(" "), headSlot-1), '\n'), 2)
	slot, at := h.slot(k)
	copy(file[at:], slot)
	if err := writeNew(path, file, 0o600); err != nil {
		return fmt.Errorf("make audit head: %w", err)
	}
	return nil
}

// writeHead overwrites the older slot in place. It is not synced: a power cut
// may leave the head some seconds behind the log, which [Verify] accepts; all
// that is lost is the notice of a cut made at that very moment.
func writeHead(f *os.File, h head, k Key) error {
	b, at := h.slot(k)
	_, err := f.WriteAt(b, at)
	return err
}
