// Package loop is the agent loop: it asks the model, turns what the model says
// into events, and decides when a session runs, waits or rests.
//
// The rules are a pure function. A [State] is what the log of a session adds up
// to; [State.Next] says what is to happen next, without a clock, randomness or
// I/O. Whatever can be done by writing events is collected by settle.go into one
// write; only a model request is done between two writes: its start is committed
// before it is sent, its outcome after. A process may die at any of these
// points: the next one folds the same log and goes on, and a request found begun
// but not ended is reported as aborted and made anew.
//
// Sessions wait for tools, people and retries in the database, never here. Tools
// run elsewhere: on workers and clients, whose results arrive as events.
//
// The package knows nothing of SQL, HTTP or workers. Start reading at
// [State.Next], then state.go for what the words mean, then turn.go for how one
// turn is carried out, and [Engine] for who does it.
package loop
