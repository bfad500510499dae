// Package e2e drives the whole program from the outside: real servers, runners,
// agents and repositories, through the command line alone. Its tests need the
// build tag e2e, git and go:
//
//	go test -tags e2e ./internal/e2e
//
// Each script in testdata/script runs in a directory of its own. What is left
// running at its end is stopped, however the script ended.
package e2e
