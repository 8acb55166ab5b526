// Package control holds the rules: what every operation of the platform means,
// who may do it, which states an object can be in, and what is written in one
// transaction. It is the one door to the store.
//
// Faces (httpapi, cli) call it with a [Principal] and get nouns of package api or
// an [*api.Error]. The agent loop calls it through [Turn]. It knows nothing of
// HTTP, of models or of workers' insides.
//
// Start reading at [Control] and, for the life of a session, at turn.go.
package control
