// Package testenv starts the real servers that tests talk to: each on a free
// loopback port, with its data in the test's temporary folder, and stopped when the
// test ends, whatever became of it.
//
// A program that is not installed skips the test with one line that says what to
// install. Where COATCHECK_TEST_REQUIRE=1 is set, as .ci/run does, it fails the test
// instead, so that nothing goes untested unnoticed.
package testenv
