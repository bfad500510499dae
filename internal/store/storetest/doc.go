// Package storetest is the conformance suite of package store: every
// implementation runs Run, so that all of them promise the same. It also has the
// two stores that tests use: Memory, deterministic and without goroutines, and
// Faulty, which makes chosen calls of any store fail in the ways that real ones do.
package storetest
