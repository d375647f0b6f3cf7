package main

import (
	"strings"
	"testing"

	"kvd.dev/load/internal/measure"
)

func TestMedianIsTheMiddleOrTheMeanOfTheTwoInTheMiddle(t *testing.T) {
	check := func(want float64, values ...float64) {
		t.Helper()
		if got := median(values, func(v float64) float64 { return v }); got != want {
			t.Errorf("median of %v: got %v, want %v", values, got, want)
		}
	}
	check(2, 3, 1, 2)
	check(2.5, 1, 4, 3, 2)
	check(7, 7)
}

func TestARatioIsTakenWithinItsRoundAndThenTheMedian(t *testing.T) {
	row := func(server string, round int, opsPerSecond float64) result {
		report := &measure.Report{Main: "put", OpsPerSecond: opsPerSecond, Server: &measure.ServerReport{CPU: 1}}
		return result{Row: "put", Server: server, Round: round, Report: report}
	}
	results := []result{
		row("kvd", 0, 20), row("etcd", 0, 10),
		// The machine was busy in this round, for both.
		row("etcd", 1, 1), row("kvd", 1, 3),
		row("kvd", 2, 40), row("etcd", 2, 10),
	}
	var table strings.Builder

	writeTable(&table, []scenario{{steps: []step{{row: "put"}}}}, results)

	for _, want := range []string{"| put | kvd | 20 |", "| | etcd | 10 |", "| | **ratio** | **3.00** |"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in\n%s", want, table.String())
		}
	}
}

func TestScenariosAreChosenByName(t *testing.T) {
	chosen, err := choose(full(), "^put|memory", "-1$")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range chosen {
		names = append(names, s.name)
	}
	if got := strings.Join(names, " "); got != "put-64 put-256 memory" {
		t.Errorf("got %q", got)
	}
	if _, err := choose(full(), "no such name", ""); err == nil {
		t.Error("an empty choice was accepted")
	}
}
