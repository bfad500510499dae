// Package arch holds the tests of the house itself: which package may import
// which, what the domain may touch, how long files and functions may be, and
// whether the generated pages of docs/ are up to date. It has no code to call.
//
// The tests read the source with go/parser; of the product only internal/town has
// to compile, so that they also speak while another package is broken. A rule that has to change is changed
// here, in the table that states it, together with the code.
package arch
