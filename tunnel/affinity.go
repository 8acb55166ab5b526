package tunnel

import (
	"crypto/sha256"
	"encoding/binary"
)

// Affinity is how much calls with a key belong to a connector: they go to the one with
// the highest value. Every edge and every dialer comes to the same one, and when a
// connector comes or goes, only its own share of the keys moves (rendezvous hashing).
func Affinity(key, connector string) uint64 {
	b := make([]byte, 0, 128)
	b = binary.AppendUvarint(b, uint64(len(key)))
	b = append(b, key...)
	b = append(b, connector...)
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:])
}
