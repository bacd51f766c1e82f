//go:build !race

package storetest

const raceDetected = false
