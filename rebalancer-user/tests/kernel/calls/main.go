// A server and a client of HTTP/2 in clear text: those of Go's own library.
//
// `calls serve ADDRESS` answers `/?bytes=N&piece=N&pause=D&seed=N` with N bytes that look like
// frames at every offset, in pieces with pauses between them.
//
// `calls ask ADDRESS CLIENTS PAUSE QUERY` asks for that with a connection of its own for each
// client, again and again, with pauses between the calls, until its input ends. Then it reports as
// JSON: calls, those that failed, wrong bodies, connections, and the first errors.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Frames as a server sends them: if one is taken for a frame, so are those behind it.
var fakes = func() []byte {
	var all []byte
	frame := func(kind, flags byte, stream uint32, payload ...byte) {
		length := len(payload)
		all = append(all, byte(length>>16), byte(length>>8), byte(length), kind, flags)
		all = binary.BigEndian.AppendUint32(all, stream)
		all = append(all, payload...)
	}
	for stream := uint32(1); stream < 4000; stream += 38 {
		frame(1, 4, stream, 0x88)
		frame(0, 0, stream, []byte("fake body")...)
		frame(1, 5, stream, 0xbe)
		frame(6, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8)
		frame(8, 0, 0, 0, 0, 0, 9)
	}
	return all
}()

func body(seed, length int) []byte {
	start := seed % len(fakes)
	body := append([]byte{}, fakes[start:]...)
	for len(body) < length {
		body = append(body, fakes...)
	}
	return body[:length]
}

func number(query url.Values, name string) int {
	n, _ := strconv.Atoi(query.Get(name))
	return n
}

func answer(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	query := r.URL.Query()
	rest := body(number(query, "seed"), number(query, "bytes"))
	piece := number(query, "piece")
	pause, _ := time.ParseDuration(query.Get("pause"))
	for len(rest) > 0 {
		n := len(rest)
		if piece > 0 {
			n = min(n, piece)
		}
		w.Write(rest[:n])
		rest = rest[n:]
		if piece > 0 {
			w.(http.Flusher).Flush()
			time.Sleep(pause)
		}
	}
}

func clearHTTP2() *http.Protocols {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return protocols
}

func serve(address string) error {
	server := &http.Server{Handler: http.HandlerFunc(answer), Protocols: clearHTTP2()}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return server.Serve(listener)
}

type report struct {
	Calls, Failed, Wrong, Connections atomic.Int64

	mutex  sync.Mutex
	errors []string
}

func (r *report) fail(err error) {
	r.Failed.Add(1)
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if len(r.errors) < 10 {
		r.errors = append(r.errors, err.Error())
	}
}

func (r *report) call(client *http.Client, address, query string, seed int) {
	target := fmt.Sprintf("http://%s/?seed=%d&%s", address, seed, query)
	r.Calls.Add(1)
	// With a body, so that the client cannot silently ask again.
	response, err := client.Post(target, "text/plain", io.MultiReader(bytes.NewReader([]byte("ask"))))
	if err != nil {
		r.fail(err)
		return
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if err != nil {
		r.fail(err)
		return
	}
	values, _ := url.ParseQuery(query)
	if !bytes.Equal(got, body(seed, number(values, "bytes"))) {
		r.Wrong.Add(1)
	}
}

func ask(address string, clients int, pause time.Duration, query string) {
	var report report
	ended := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	var all sync.WaitGroup
	for i := range clients {
		transport := &http.Transport{
			Protocols: clearHTTP2(),
			DialContext: func(ctx context.Context, network, to string) (net.Conn, error) {
				report.Connections.Add(1)
				return new(net.Dialer).DialContext(ctx, network, to)
			},
		}
		client := &http.Client{Transport: transport}
		all.Add(1)
		go func() {
			defer all.Done()
			for seed := i * 7919; ; seed++ {
				select {
				case <-ended:
					return
				case <-time.After(pause):
					report.call(client, address, query, seed)
				}
			}
		}()
	}
	fmt.Println("ready")
	all.Wait()
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"calls":       report.Calls.Load(),
		"failed":      report.Failed.Load(),
		"wrong":       report.Wrong.Load(),
		"connections": report.Connections.Load(),
		"errors":      report.errors,
	})
}

func main() {
	var err error
	switch os.Args[1] {
	case "serve":
		err = serve(os.Args[2])
	case "ask":
		clients, _ := strconv.Atoi(os.Args[3])
		pause, _ := time.ParseDuration(os.Args[4])
		ask(os.Args[2], clients, pause, os.Args[5])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
