// The peer of bench/websocket_fanout.py: gorilla/websocket with prepared messages, and no more than the conversation.
// No identity, no policy, no log. Prints its address as one line of JSON.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

type operation struct {
	Op   string `json:"op"`
	Text string `json:"text"`
}

type record struct {
	ID        string            `json:"id"`
	Topic     string            `json:"topic"`
	Partition int               `json:"partition"`
	Offset    int64             `json:"offset"`
	Timestamp int64             `json:"timestamp"`
	Key       string            `json:"key"`
	Text      string            `json:"text"`
	Headers   map[string]string `json:"headers"`
}

type records struct {
	Op      string   `json:"op"`
	Sub     string   `json:"sub"`
	Cursor  string   `json:"cursor"`
	Records []record `json:"records"`
}

// One connection; gorilla allows one writer at a time.
type client struct {
	mutex      sync.Mutex
	connection *websocket.Conn
}

func (c *client) send(message *websocket.PreparedMessage) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	_ = c.connection.WritePreparedMessage(message)
}

type hub struct {
	mutex       sync.Mutex
	subscribers map[*client]struct{}
	offset      int64
}

func (h *hub) publish(text string) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.offset++
	now := time.Now().UnixMilli()
	body, err := json.Marshal(records{"records", "bench", fmt.Sprintf("%d-0", h.offset), []record{{
		ID: fmt.Sprintf("%012x-7000-8000-%016x", now, h.offset), Topic: "bench", Offset: h.offset, Timestamp: now, Key: "k",
		Text: text, Headers: map[string]string{"content-type": "text/plain; charset=utf-8"},
	}}})
	if err != nil {
		log.Fatal(err)
	}
	message, err := websocket.NewPreparedMessage(websocket.TextMessage, body)
	if err != nil {
		log.Fatal(err)
	}
	for subscriber := range h.subscribers {
		subscriber.send(message)
	}
}

func (h *hub) serve(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	connection, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	c := &client{connection: connection}
	say := func(text string) {
		c.mutex.Lock()
		defer c.mutex.Unlock()
		_ = connection.WriteMessage(websocket.TextMessage, []byte(text))
	}
	defer func() {
		h.mutex.Lock()
		delete(h.subscribers, c)
		h.mutex.Unlock()
		connection.Close()
	}()
	say(`{"op":"ready"}`)
	for {
		_, message, err := connection.ReadMessage()
		if err != nil {
			return
		}
		var o operation
		if json.Unmarshal(message, &o) != nil {
			return
		}
		if o.Op == "subscribe" {
			h.mutex.Lock()
			h.subscribers[c] = struct{}{}
			h.mutex.Unlock()
			say(`{"op":"subscribed"}`)
		} else {
			h.publish(o.Text)
			say(`{"op":"ack"}`)
		}
	}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("{\"websocket_url\":\"ws://%s/v1/ws\"}\n", listener.Addr())
	h := &hub{subscribers: map[*client]struct{}{}}
	http.HandleFunc("/v1/ws", h.serve)
	log.Fatal(http.Serve(listener, nil))
}
