//go:build e2e

package e2e

import (
	"database/sql"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"
	_ "modernc.org/sqlite" // to damage what a server wrote
)

// damageStore changes rows of a database that no server has open: damage SQL.
func damageStore(ts *testscript.TestScript, _ bool, args []string) {
	db, err := sql.Open("sqlite", filepath.Join(ts.MkAbs("data"), "gastown.db"))
	ts.Check(err)
	defer db.Close()
	for _, q := range args {
		res, err := db.Exec(q)
		ts.Check(err)
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			ts.Fatalf("%s changed %d rows, %v", q, n, err)
		}
	}
}
