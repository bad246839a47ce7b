;;; A few seconds of work for the collector under Guile: what it prints depends on nothing but
;;; this text and the file named on the command line, so two collectors must agree on it.
;;; Old structures are kept and mutated all the time; garbage is made in between.

(use-modules (ice-9 threads) (ice-9 rdelim) (srfi srfi-1))

(define (say name value)
  (display name) (display ": ") (write value) (newline))

;;; A linear congruence, so that the numbers do not depend on Guile's own generator.
(define (make-random seed)
  (lambda (below)
    (set! seed (modulo (+ (* seed 6364136223846793005) 1442695040888963407)
                       18446744073709551616))
    (modulo (quotient seed 8589934592) below)))

(define (fold-hash numbers)
  (fold (lambda (n hash) (modulo (+ (* hash 31) n) 1000000007)) 7 numbers))

;;; Hash tables: strings as keys, entries replaced and removed, the table kept throughout.
(define (hash-tables)
  (let ((table (make-hash-table)) (random (make-random 1)))
    (do ((i 0 (+ i 1))) ((= i 120000))
      (let ((key (string-append "key-" (number->string (random 8000)))))
        (if (zero? (random 5))
            (hash-remove! table key)
            (hash-set! table key (list i key (make-vector 8 i))))))
    (hash-fold (lambda (key value sum)
                 (if (not (and (string=? key (cadr value))
                               (= (car value) (vector-ref (caddr value) 7))))
                     (error "the table holds what was never put there" key value))
                 (modulo (+ sum (car value)) 1000000007))
               0 table)))

;;; Strings: built from pieces, cut, searched.
(define (strings)
  (let loop ((i 0) (text "") (sum 0))
    (if (= i 6000)
        sum
        (let* ((next (string-append text (number->string (* i i)) ","))
               (kept (if (> (string-length next) 2000) (substring next 1000) next)))
          (loop (+ i 1) kept
                (modulo (+ (* sum 3) (string-length kept)
                           (or (string-contains kept "99") 0))
                        1000000007))))))

;;; Continuations: a generator that is left and entered again thousands of times, so stacks are
;;; copied to the heap and back.
(define (continuations)
  (define return #f)
  (define resume #f)
  (define (walk tree)
    (cond ((pair? tree) (walk (car tree)) (walk (cdr tree)))
          ((null? tree) #t)
          (else (call/cc (lambda (k) (set! resume k) (return tree))))))
  (define (next tree)
    (call/cc (lambda (k)
               (set! return k)
               (if resume
                   (let ((k resume)) (set! resume #f) (k #t))
                   (begin (walk tree) (return 'end))))))
  (define (build depth)
    (if (zero? depth) (list depth 1 2) (cons (build (- depth 1)) (build (- depth 1)))))
  (let ((tree (build 11)))
    (let loop ((sum 0) (count 0))
      (let ((leaf (next tree)))
        (if (eq? leaf 'end)
            (list count sum)
            (loop (+ sum leaf) (+ count 1)))))))

;;; Sorting, of lists and in place.
(define (sorting)
  (let* ((random (make-random 2))
         (numbers (list-tabulate 60000 (lambda (i) (random 1000000))))
         (vec (list->vector (map number->string numbers))))
    (sort! vec string<?)
    (list (fold-hash (sort numbers <))
          (vector-ref vec 0)
          (vector-ref vec 30000)
          (vector-ref vec 59999))))

;;; Bignums: every product is a new object of a new size.
(define (bignums)
  (define (factorial n) (if (zero? n) 1 (* n (factorial (- n 1)))))
  (let loop ((i 0) (a 0) (b 1))
    (if (< i 20000)
        (loop (+ i 1) b (+ a b))
        (list (modulo a 1000000007)
              (string-length (number->string a))
              (modulo (factorial 1500) (+ (expt 10 40) 37))
              (gcd (factorial 300) (expt 2 500))))))

;;; Threads: each mutates a vector of its own and adds to a shared list. One at a time: with several
;;; at once Guile 3.0.8 crashes in one run of ten under Debian's own libgc in full mode, as a stack that
;;; a thread is using gets lost.
(define (threads)
  (let* ((lock (make-mutex))
         (shared '())
         (work (lambda (id)
                 (let ((random (make-random id)) (mine (make-vector 2000 '())))
                   (do ((i 0 (+ i 1))) ((= i 40000))
                     (let ((at (random 2000)))
                       (vector-set! mine at (list i at (vector-ref mine at)))
                       (if (zero? (modulo i 16)) (vector-set! mine at '()))))
                   (with-mutex lock (set! shared (cons id shared)))
                   (fold-hash (map (lambda (cell) (if (null? cell) 0 (car cell)))
                                   (vector->list mine)))))))
    (let ((results (map (lambda (id) (join-thread (call-with-new-thread (lambda () (work id)))))
                        '(11 12 13 14))))
      (list results (sort shared <)))))

;;; A file, read by lines and by blocks: system calls that write into the collector's heap.
(define (file name)
  (let ((lines (call-with-input-file name
                 (lambda (port)
                   (let loop ((count 0) (length 0))
                     (let ((line (read-line port)))
                       (if (eof-object? line)
                           (list count length)
                           (loop (+ count 1) (+ length (string-length line)))))))))
        (whole (call-with-input-file name (lambda (port) (read-string port)))))
    (list lines (string-length whole) (string-hash whole 1000003))))

(for-each (lambda (name work) (say name (work)))
          '("hash tables" "strings" "continuations" "sorting" "bignums" "threads" "file")
          (list hash-tables strings continuations sorting bignums threads
                (lambda () (file (cadr (command-line))))))
(say "hash tables again" (hash-tables))
