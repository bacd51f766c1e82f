// Package coatcheck holds the vocabulary of coatcheck: a proxy that signs people
// in with OpenID Connect, keeps their sessions where any node can serve them, and
// tells the apps behind it who the user is.
//
// A browser holds a ticket; the OAuth tokens stay behind the counter. The words
// used throughout the tree:
//
//   - A [Session] is a user's state at coatcheck. Its [State] is anonymous,
//     returning or authenticated.
//   - A ticket is what the browser holds of a stored session: the name of a record
//     in the store, and the secret that opens it. Package session makes and reads
//     tickets.
//   - An [Identity] is what a provider said about a person.
//   - A [Secret] is text that must not be printed.
//   - An [Error] carries one [Code] of a closed list. The code is all that decides
//     what a browser is told; the cause is for the log.
//
// This package imports the standard library only, and every other package may
// import it. docs/architecture.md follows one request through the tree.
package coatcheck
