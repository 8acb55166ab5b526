package tunnel

import (
	"crypto/tls"
	"errors"
	"os"
)

// Quiet reports whether nothing has come on an idle connection, an end least of all: so
// that what is asked on it next is answered by what comes next. below is the Socket under
// the connection, however far; without one nothing can be known, and Quiet says true. It
// does not wait, and is for who reads.
func Quiet(conn *tls.Conn, below *Socket) bool {
	if below == nil {
		return true
	}
	below.Hurry(true)
	defer below.Hurry(false)
	var one [1]byte
	_, err := conn.Read(one[:])
	return errors.Is(err, os.ErrDeadlineExceeded) && AsError(err) == nil
}
