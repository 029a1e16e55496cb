// The shop in Go, with pgx. See docs/guides.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const checkViolation = "23514"

type order struct {
	ID       int64   `json:"id"`
	Customer string  `json:"customer"`
	Total    float64 `json:"total"`
}

type wanted struct {
	Customer string `json:"customer"`
	Total    string `json:"total"`
}

// publish publishes an event as part of the transaction. It is delivered if that commits.
func publish(ctx context.Context, tx pgx.Tx, userID, event string, data any) error {
	encoded, err := json.Marshal(data)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "select userrealtime.publish($1, $2, $3::text::jsonb)", userID, event, string(encoded))
	return err
}

// place stores the order, the event and the credit in one transaction: all of them or none.
func place(ctx context.Context, pool *pgxpool.Pool, w wanted) (id int64, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		insert := "insert into orders (customer, total) values ($1, $2::text::numeric) returning id"
		if err := tx.QueryRow(ctx, insert, w.Customer, w.Total).Scan(&id); err != nil {
			return err
		}
		if err := publish(ctx, tx, w.Customer, "order.placed", map[string]any{"id": id, "total": w.Total}); err != nil {
			return err
		}
		update := "update credit set available = available - $2::text::numeric where customer = $1"
		_, err := tx.Exec(ctx, update, w.Customer, w.Total)
		return err
	})
	return id, err
}

// orders returns state and position in one snapshot: a transaction with REPEATABLE READ.
func orders(ctx context.Context, pool *pgxpool.Pool, customer string) (state []order, position string, err error) {
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err = pgx.BeginTxFunc(ctx, pool, options, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, "select userrealtime.position($1)", customer).Scan(&position); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, "select id, customer, total::float8 from orders where customer = $1 order by id", customer)
		if err != nil {
			return err
		}
		state, err = pgx.CollectRows(rows, pgx.RowToStructByPos[order])
		return err
	})
	return state, position, err
}

// answer takes the oldest messages from the inbox and replies to them, in one transaction. In a real application a worker
// does this whenever it is notified.
func answer(ctx context.Context, pool *pgxpool.Pool) (taken int, err error) {
	const take = `
		with waiting as (
			select id from userrealtime.inbox where done is null order by id limit 10 for update skip locked
		), taken as (
			update userrealtime.inbox as message set done = now() from waiting where message.id = waiting.id
			returning message.id, message.user_id, message.data
		)
		select id, user_id, data from taken order by id`
	type message struct {
		ID     int64
		UserID string
		Data   json.RawMessage
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, take)
		if err != nil {
			return err
		}
		messages, err := pgx.CollectRows(rows, pgx.RowToStructByPos[message])
		if err != nil {
			return err
		}
		for _, m := range messages {
			if err := publish(ctx, tx, m.UserID, "echo", map[string]any{"message": m.ID, "data": m.Data}); err != nil {
				return err
			}
		}
		taken = len(messages)
		return nil
	})
	return taken, err
}

// sign returns a token of the user. TOKEN_KEYS is where the Secret of the user is mounted.
func sign(userID string) (string, error) {
	key, err := os.ReadFile(filepath.Join(os.Getenv("TOKEN_KEYS"), "TOKEN_KEY"))
	if err != nil {
		return "", err
	}
	now := time.Now()
	claims := jwt.MapClaims{"sub": userID, "iat": now.Unix(), "exp": now.Add(15 * time.Minute).Unix()}
	return jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(strings.TrimSpace(string(key))))
}

func respond(w http.ResponseWriter, status int, body any, err error) {
	var failure *pgconn.PgError
	if errors.As(err, &failure) && failure.Code == checkViolation {
		status, body, err = http.StatusConflict, map[string]string{"error": "the credit is too low"}, nil
	}
	if err != nil {
		log.Print(err)
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.WriteHeader(status)
	if text, isText := body.(string); isText {
		fmt.Fprint(w, text)
		return
	}
	_ = json.NewEncoder(w).Encode(body)
}

func main() {
	pool, err := pgxpool.New(context.Background(), os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("POST /orders", func(w http.ResponseWriter, r *http.Request) {
		var body wanted
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			respond(w, http.StatusBadRequest, err.Error(), nil)
			return
		}
		id, err := place(r.Context(), pool, body)
		respond(w, http.StatusCreated, map[string]int64{"id": id}, err)
	})
	http.HandleFunc("GET /orders", func(w http.ResponseWriter, r *http.Request) {
		state, position, err := orders(r.Context(), pool, r.FormValue("customer"))
		respond(w, http.StatusOK, map[string]any{"state": state, "position": position}, err)
	})
	http.HandleFunc("GET /position", func(w http.ResponseWriter, r *http.Request) {
		var position string
		err := pool.QueryRow(r.Context(), "select userrealtime.position($1)", r.FormValue("customer")).Scan(&position)
		respond(w, http.StatusOK, position, err)
	})
	http.HandleFunc("POST /inbox", func(w http.ResponseWriter, r *http.Request) {
		taken, err := answer(r.Context(), pool)
		respond(w, http.StatusOK, map[string]int{"taken": taken}, err)
	})
	http.HandleFunc("GET /token", func(w http.ResponseWriter, r *http.Request) {
		token, err := sign(r.FormValue("customer"))
		respond(w, http.StatusOK, token, err)
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
