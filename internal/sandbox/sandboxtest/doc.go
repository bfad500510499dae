// Package sandboxtest holds the conformance suite that every sandbox driver
// passes, and Fake, a driver in memory for tests of the driver's users.
//
// Run drives a real driver with small helper commands (see Helper). A driver's
// test package re-executes its own test binary as the helper:
//
//	func TestMain(m *testing.M) {
//		sandboxtest.HelperMain() // does not return in a child
//		os.Exit(m.Run())
//	}
//
// Helpers and tests speak through named pipes and files on the sandbox's disk,
// never by waiting for a time to pass.
package sandboxtest
