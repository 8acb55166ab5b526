package tunnel

import "strings"

// ReplicaHeader is the response header in which a gateway says which of a tunnel's
// gateways has answered, or, with [StageOtherReplica], which has to be asked: by the id
// of its connector.
const ReplicaHeader = "Bailey-Tunnel-Replica"

// ReplicaEnd ends the id of a connector at the beginning of an MCP session's id, where
// the session is known to its gateway alone. What follows is the session's own.
const ReplicaEnd = "~"

// SessionReplica is the id of the connector that a session's id begins with, or "". It
// is a hint: a server may use such ids as well.
func SessionReplica(session string) string {
	if replica, _, ok := strings.Cut(session, ReplicaEnd); ok && len(replica) <= connectorMax {
		return replica
	}
	return ""
}
