package netjail

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/egress"
)

// TestDocumentedLimits: the operators' table of limits is that of the code.
func TestDocumentedLimits(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../docs/network.md")
	if err != nil {
		t.Fatal(err)
	}
	l := Limits{}.defaults()
	for _, row := range []string{
		fmt.Sprintf("| connections of a box at a time | %d |", l.Connections),
		fmt.Sprintf("| names that a box asks for in its life | %d |", l.Names),
		fmt.Sprintf("| questions to its name server | %d a second, %d in a burst |", l.Queries, 4*l.Queries),
		fmt.Sprintf("| time to say what is wanted, on a connection that is looked into | %.0f s |", l.Greeting.Seconds()),
		fmt.Sprintf("| a connection on which nothing is sent | %.0f min |", l.Idle.Minutes()),
		fmt.Sprintf("| any connection | %.0f h |", l.Total.Hours()),
		fmt.Sprintf("| head of a request · of a response | %d KiB · %d MiB |", headMax>>10, responseHeadMax>>20),
		fmt.Sprintf("| requests at a time on a connection · of a box, where they are judged | %d · %d |", streamsMax, l.Requests),
		fmt.Sprintf("| a body that is held to tell its new length · of a box at a time · of a worker | %d MiB · %d MiB · %d MiB; beyond it bodies go out as they come, their length untold |", gatherMax>>20, boxGathers>>20, workerGathers>>20),
		fmt.Sprintf("| values of credentials in the head of a request | %d KiB |", putInMax>>10),
		fmt.Sprintf("| rules of a policy · hosts of a rule · credentials of a box | %d · %d · %d |", egress.RulesMax, egress.PatternsMax, CredentialsMax),
	} {
		if !strings.Contains(string(doc), row+"\n") {
			t.Errorf("docs/network.md does not say: %s", row)
		}
	}
}
