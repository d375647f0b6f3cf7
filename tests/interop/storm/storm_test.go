package main

import (
	"os"
	"strings"
	"testing"
	"time"
)

// TestShortStorm is the soak's storm for a few seconds.
func TestShortStorm(t *testing.T) {
	bin := os.Getenv("KVD_BIN")
	if bin == "" {
		t.Skip("KVD_BIN not set")
	}
	failures, err := run(bin, strings.Fields(os.Getenv("KVD_ARGS")), 3, 16, 8*time.Second, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, failure := range failures {
		t.Error(failure)
	}
}
