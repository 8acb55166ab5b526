// Package telemetry sets up what an operator sees of a running Bailey: its log,
// its metrics and the facts of its build. It knows no other package of Bailey,
// keeps nothing global, and everything it makes is handed on by its caller.
//
// Start reading at [NewLogger].
package telemetry
