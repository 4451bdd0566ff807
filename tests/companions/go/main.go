// Go clients against a live node: referee franz-go|sarama '{"address", "user", "token", "ca", "topic"}'.
// Prints what it saw as one line of JSON.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
)

const records = 200

type asked struct{ Address, User, Token, CA, Topic string }

type saw struct {
	Version   string   `json:"version"`
	Seen      []string `json:"seen"`
	Committed int64    `json:"committed"`
	End       int64    `json:"end"`
	Listed    bool     `json:"listed"`
	Deleted   bool     `json:"deleted"`
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (a asked) tls() *tls.Config {
	pem, err := os.ReadFile(a.CA)
	must(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// distinct takes values until so many different ones came.
func distinct(values <-chan string, count int) []string {
	seen, order := map[string]bool{}, []string{}
	for len(order) < count {
		if value := <-values; !seen[value] {
			seen[value] = true
			order = append(order, value)
		}
	}
	return order
}

func version(module string) string {
	info, _ := debug.ReadBuildInfo()
	for _, each := range info.Deps {
		if each.Path == module {
			return each.Version
		}
	}
	return "unknown"
}

func main() {
	var wanted asked
	must(json.Unmarshal([]byte(os.Args[2]), &wanted))
	clients := map[string]func(asked) saw{"franz-go": franz, "sarama": withSarama}
	answer, err := json.Marshal(clients[os.Args[1]](wanted))
	must(err)
	fmt.Println(string(answer))
}
