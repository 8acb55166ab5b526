// Package e2e drives the built binary from outside, as its users do: through the
// official SDKs, through its own command line, and through HTTP by hand. It holds
// tests only and looks at nothing but what a user can see.
//
// A test starts a plane ([startPlane] in plane_test.go) with a scripted model that
// this process serves, and field workers beside it: those of the official SDKs, or
// our own. Start reading at TestMain in e2e_test.go.
//
// The environment decides what runs:
//
//	BAILEY_BINARY         a binary to test; without it, one is built from source
//	BAILEY_TEST_POSTGRES  URL of a PostgreSQL server where databases may be made;
//	                      the tests of the plane then run on both engines
//	BAILEY_E2E_LONG       any value: more crash points, larger floods
//	CI=true               a part that is missing (node, PostgreSQL, a sandbox) fails
//	                      the test instead of skipping it
package e2e
