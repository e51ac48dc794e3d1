// Servers without shutdown code and clients that keep their connections, of Go's own HTTP library and of grpc-go.
//
// `rollouts serve-http` and `rollouts serve-grpc` answer on port 80 after 200 ms. `rollouts ask-http CONNECTIONS
// NAME=URL…` and `rollouts ask-grpc CONNECTIONS NAME=ADDRESS…` ask each on so many connections, with pauses of 300 to
// 600 ms, and print a report every second: requests and errors by name, as a line of JSON. With `h2c` for `http` they
// speak HTTP/2 in clear text. With $PARALLEL so many calls share each connection. `rollouts version` prints the versions
// of the libraries.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
)

const half = 100 * time.Millisecond

// The protocols of a server, or of a client.
func protocols(http2 bool) *http.Protocols {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	return protocols
}

func serveHTTP(http2 bool) error {
	server := &http.Server{Addr: ":80", Protocols: protocols(http2)}
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		time.Sleep(half)
		io.WriteString(w, "one half, ")
		w.(http.Flusher).Flush()
		time.Sleep(half)
		io.WriteString(w, "and the other")
	})
	return server.ListenAndServe()
}

type slow struct {
	health.UnimplementedHealthServer
}

func (slow) Check(context.Context, *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	time.Sleep(2 * half)
	return &health.HealthCheckResponse{Status: health.HealthCheckResponse_SERVING}, nil
}

func serveGRPC() error {
	listener, err := net.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	health.RegisterHealthServer(server, slow{})
	return server.Serve(listener)
}

type count struct {
	Requests int    `json:"requests"`
	Errors   int    `json:"errors"`
	Last     string `json:"last"`
}

type report struct {
	mutex  sync.Mutex
	counts map[string]*count
}

func (r *report) add(name string, err error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.counts[name].Requests++
	if err != nil {
		r.counts[name].Errors++
		r.counts[name].Last = err.Error()
	}
}

func (r *report) print() {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	line, _ := json.Marshal(r.counts)
	fmt.Println(string(line))
}

// Asks by one connection each, in turn with pauses.
func ask(connections int, targets []string, connect func(target string) func() error) {
	report := &report{counts: map[string]*count{}}
	parallel, _ := strconv.Atoi(os.Getenv("PARALLEL"))
	for _, target := range targets {
		name, address, _ := strings.Cut(target, "=")
		report.counts[name] = &count{}
		for range connections {
			one := connect(address)
			for range max(parallel, 1) {
				go func() {
					for {
						report.add(name, one())
						time.Sleep(300*time.Millisecond + time.Duration(rand.IntN(300))*time.Millisecond)
					}
				}()
			}
		}
	}
	for range time.Tick(time.Second) {
		report.print()
	}
}

func askHTTP(http2 bool, url string) func() error {
	transport := &http.Transport{Protocols: protocols(http2)}
	if !http2 {
		transport.MaxConnsPerHost = 1
	}
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	return func() error {
		// With a body that cannot be sent again, so that the library does not hide an error by asking twice.
		response, err := client.Post(url, "text/plain", io.MultiReader(strings.NewReader("ask")))
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if _, err = io.ReadAll(response.Body); err == nil && response.StatusCode != 200 {
			err = fmt.Errorf("status %d", response.StatusCode)
		}
		return err
	}
}

func askGRPC(address string) func() error {
	connection, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		panic(err)
	}
	client := health.NewHealthClient(connection)
	return func() error {
		within, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := client.Check(within, &health.HealthCheckRequest{})
		return err
	}
}

func version() {
	info, _ := debug.ReadBuildInfo()
	fmt.Print(info.GoVersion)
	for _, module := range info.Deps {
		if module.Path == "google.golang.org/grpc" {
			fmt.Print(", grpc-go ", module.Version)
		}
	}
	fmt.Println()
}

func main() {
	var err error
	connections := 0
	if len(os.Args) > 2 {
		connections, err = strconv.Atoi(os.Args[2])
	}
	switch {
	case err != nil:
	case os.Args[1] == "version":
		version()
		return
	case os.Args[1] == "serve-http" || os.Args[1] == "serve-h2c":
		err = serveHTTP(os.Args[1] == "serve-h2c")
	case os.Args[1] == "serve-grpc":
		err = serveGRPC()
	case os.Args[1] == "ask-http" || os.Args[1] == "ask-h2c":
		http2 := os.Args[1] == "ask-h2c"
		ask(connections, os.Args[3:], func(url string) func() error { return askHTTP(http2, url) })
	case os.Args[1] == "ask-grpc":
		ask(connections, os.Args[3:], askGRPC)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
