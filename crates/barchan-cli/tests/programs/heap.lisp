;;; A few seconds of work for the collector under ECL: what it prints depends on nothing but this
;;; text and the file named in the variable HEAP_FILE. Loaded, not compiled to C.

(defun say (name value)
  (format t "~a: ~s~%" name value))

(defun make-random (seed)
  "A linear congruence, so that the numbers do not depend on the Lisp's own generator."
  (lambda (below)
    (setf seed (mod (+ (* seed 6364136223846793005) 1442695040888963407) (expt 2 64)))
    (mod (floor seed 8589934592) below)))

(defun fold-hash (numbers)
  (reduce (lambda (hash n) (mod (+ (* hash 31) n) 1000000007)) numbers :initial-value 7))

(defun hash-tables ()
  (let ((table (make-hash-table :test #'equal)) (random (make-random 1)) (sum 0))
    (dotimes (i 60000)
      (let ((key (format nil "key-~d" (funcall random 6000))))
        (if (zerop (funcall random 5))
            (remhash key table)
            (setf (gethash key table) (list i key (make-array 8 :initial-element i))))))
    (maphash (lambda (key value)
               (unless (and (string= key (second value)) (= (first value) (aref (third value) 7)))
                 (error "the table holds what was never put there: ~s ~s" key value))
               (setf sum (mod (+ sum (first value)) 1000000007)))
             table)
    sum))

(defstruct node key left right)

(defun insert (tree key)
  "A search tree that is mutated in place: old nodes that point to new ones."
  (if (null tree)
      (make-node :key key)
      (progn
        (cond ((< key (node-key tree)) (setf (node-left tree) (insert (node-left tree) key)))
              ((> key (node-key tree)) (setf (node-right tree) (insert (node-right tree) key))))
        tree)))

(defun trees ()
  (let ((random (make-random 3)) (tree nil) (keys '()))
    (dotimes (i 20000) (setf tree (insert tree (funcall random 1000000))))
    (labels ((walk (node)
               (when node
                 (walk (node-left node))
                 (push (node-key node) keys)
                 (walk (node-right node)))))
      (walk tree))
    (list (length keys) (fold-hash (reverse keys)))))

(defun strings ()
  (let ((text "") (sum 0))
    (dotimes (i 4000 sum)
      (setf text (concatenate 'string text (princ-to-string (* i i)) ","))
      (when (> (length text) 2000) (setf text (subseq text 1000)))
      (setf sum (mod (+ (* sum 3) (length text) (or (search "99" text) 0)) 1000000007)))))

(defun sorting ()
  (let* ((random (make-random 2))
         (numbers (loop repeat 30000 collect (funcall random 1000000)))
         (names (sort (map 'vector #'princ-to-string numbers) #'string<)))
    (list (fold-hash (sort numbers #'<)) (aref names 0) (aref names 15000) (aref names 29999))))

(defun bignums ()
  (let ((a 0) (b 1) (factorial 1))
    (dotimes (i 10000) (psetf a b b (+ a b)))
    (loop for i from 1 to 1000 do (setf factorial (* factorial i)))
    (list (mod a 1000000007) (length (princ-to-string a))
          (mod factorial (+ (expt 10 40) 37)) (gcd factorial (expt 2 1200)))))

(defun closures-and-conditions ()
  (let ((stack '()) (caught 0))
    (dotimes (i 20000)
      (let ((n i)) (push (lambda () (incf n)) stack))
      (when (> (length stack) 50) (setf stack (subseq stack 0 25)))
      (handler-case (when (zerop (mod i 7)) (error "every seventh: ~d" i))
        (error () (incf caught))))
    (list caught (mapcar #'funcall (subseq stack 0 3)))))

(defun file (name)
  "Lines and blocks: system calls that write into the collector's heap."
  (let ((lines 0) (characters 0) (bytes 0) (sum 0)
        (block (make-array 65536 :element-type '(unsigned-byte 8))))
    (with-open-file (stream name)
      (loop for line = (read-line stream nil) while line
            do (incf lines) (incf characters (length line))))
    (with-open-file (stream name :element-type '(unsigned-byte 8))
      (loop for read = (read-sequence block stream) until (zerop read)
            do (incf bytes read) (setf sum (mod (+ (* sum 31) (aref block (1- read))) 65521))))
    (list lines characters bytes sum)))

(say "hash tables" (hash-tables))
(say "trees" (trees))
(say "strings" (strings))
(say "sorting" (sorting))
(say "bignums" (bignums))
(say "closures and conditions" (closures-and-conditions))
(say "file" (file (ext:getenv "HEAP_FILE")))
(say "trees again" (trees))
(ext:quit 0)
