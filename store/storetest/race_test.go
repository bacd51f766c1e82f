//go:build race

package storetest

// raceDetected: the race detector is on, and objects itself to a driver that keeps slices
// which are its caller's.
const raceDetected = true
