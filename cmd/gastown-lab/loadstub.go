package main

import (
	"context"

	"gastown/internal/lab"
)

func stub(*loadFlags) func(context.Context, *lab.Place) (any, error) { return nil }

var loadWake, loadCreate, loadMemory, loadTown, loadAll = stub, stub, stub, stub, stub
